"""`lpaf inspect`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from lpaf_jax.cli.stage import StageName


@dataclass(frozen=True)
class Inspect:
    """Show how a model was compressed: rank, weights kept and size of every matrix.

    Reads only the headers of the weight files, so a large model takes no longer.
    """

    dir: Positional[Path]
    """Folder of a run or of a model, factorized or dense."""
    stage: StageName = "final"
    """Stage whose model is used, if DIR is a run."""
    json: bool = False
    """Print one JSON object instead of the table."""

    def run(self) -> None:
        """Read and print."""
        from lpaf_jax.checkpoints import find_model
        from lpaf_jax.core.files import json_text
        from lpaf_jax.evaluation.inspection import inspect_model

        found = inspect_model(find_model(self.dir, self.stage))
        if self.json:
            print(json_text(found, indent=2))
            return
        from rich.console import Console

        from lpaf_jax.report.inspection import print_inspection

        print_inspection(found, Console(highlight=False, markup=False, emoji=False))
