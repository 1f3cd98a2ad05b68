"""`lpaf push`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lpaf_jax.cli.stage import StageName


@dataclass(frozen=True)
class Push:
    """Put a finished model on the hub, card and tokenizer with it; prints where it is.

    The token is that of `hf auth login`, or of the variable HF_TOKEN.
    """

    dir: Positional[Path]
    """Folder of a run, or of a model."""
    repo: Annotated[Positional[str], arg(metavar="OWNER/NAME")]
    """The repository, which is made if it is not there."""
    stage: StageName = "final"
    """Which model of a run: as it stood after this stage."""
    private: bool = False
    """Make the repository a private one, where it is made."""
    message: str = "Upload a model compressed by lpaf-jax"
    """Of the commit."""

    def run(self) -> None:
        """Upload and print."""
        from lpaf_jax.checkpoints import find_model
        from lpaf_jax.export import push_model

        place = find_model(self.dir, self.stage)
        print(push_model(place, self.repo, private=self.private, message=self.message))
