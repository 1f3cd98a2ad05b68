"""`lpaf push`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lpaf_jax.cli.stage import StageName


@dataclass(frozen=True)
class Push:
    """Upload a finished model to the hub, with its card and tokenizer; prints the URL.

    Log in first with `hf auth login`, or set HF_TOKEN.
    """

    dir: Positional[Path]
    """Folder of a run or of a model."""
    repo: Annotated[Positional[str], arg(metavar="OWNER/NAME")]
    """Repository, created if it does not exist."""
    stage: StageName = "final"
    """Stage whose model is used, if DIR is a run."""
    private: bool = False
    """Make a new repository private."""
    message: str = "Upload a model compressed by lpaf-jax"
    """Commit message."""

    def run(self) -> None:
        """Upload and print."""
        from lpaf_jax.checkpoints import find_model
        from lpaf_jax.export import push_model

        place = find_model(self.dir, self.stage)
        print(push_model(place, self.repo, private=self.private, message=self.message))
