"""`lpaf compare`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from lpaf_jax.core.errors import LpafError
from lpaf_jax.tasks.options import Copy, LabelColumn, PairColumn, TextColumn

_OPTIONAL = "(optional)"
_OWN = "(default: the recipe's)"
_FILE = arg(metavar="FILE", help_behavior_hint=_OPTIONAL)
_INT = arg(metavar="INT", help_behavior_hint=_OPTIONAL)
# What is said even where it is the default, as the function has no other.
_ALWAYS = ("model", "out", "task", "recipes", "params", "seeds", "baseline")


@dataclass(frozen=True)
class Compare:
    """Run several recipes on one model and data, and compare them.

    Every recipe at every size with every seed, each an ordinary run in DIR/runs that takes over
    what others have made already. Killed, it goes on; finished, it takes more recipes, sizes and
    seeds. Writes compare.json and compare.html.
    """

    model: Positional[str]
    """`minilm`, `smollm2`, a folder with a Hugging Face checkpoint, a .gguf file, or a hub id."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the runs and the report."""
    recipes: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")]
    """The methods, as for compress; `lpaf recipes` lists them."""
    task: Annotated[str | None, arg(metavar="TASK", help_behavior_hint=_OPTIONAL)] = None
    """A task's name or a file, as for compress. Without one give --calibration."""
    params: Annotated[tuple[float, ...], arg(metavar="FLOAT [FLOAT ...]")] = (0.5,)
    """Shares of the numbers in the compressible matrices to keep."""
    seeds: Annotated[tuple[int, ...], arg(metavar="INT [INT ...]")] = (0,)
    """A run of every recipe and size with each; the table shows means."""
    baseline: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: svd-ft, or the first)")
    ] = None
    """The recipe that the others are tested against."""
    preset: Literal["quick", "standard", "paper"] = "standard"
    """Defaults of all stages, as for compress."""
    calibration: Annotated[Path | None, _FILE] = None
    """Text that models are compressed by where there is no task."""
    held_out: Annotated[Path | None, _FILE] = None
    """Text by which models are judged, where there is no task."""
    samples: int = 128
    """Pieces of the calibration text that are read, at most."""
    ranks: Annotated[str | None, arg(metavar="NAME", help_behavior_hint=_OWN)] = None
    """Who gets which rank, in all recipes; `lpaf recipes` lists all."""
    finetune_epochs: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=_OWN)] = None
    """Epochs of fine-tuning, in all recipes that have it."""
    tune_epochs: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=_OWN)] = None
    """Epochs after the factorization, in all recipes that tune; 0 leaves it out."""
    transfer: Annotated[Path | None, _FILE] = None
    """Texts without labels that the dense model answers, in all recipes that tune."""
    transfer_samples: Annotated[int | None, _INT] = None
    """So many of them at most, as for compress."""
    batch: int = 32
    """Examples a step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What training computes in."""
    length: Annotated[int | None, _INT] = None
    """Longest text in tokens, as for compress."""
    limit: Annotated[int | None, _INT] = None
    """Use at most this many training examples."""
    text_column: TextColumn = None
    label_column: LabelColumn = None
    pair_column: PairColumn = None
    regression: bool = False
    """The labels of a file are numbers to be predicted, not classes."""
    language_model: bool = False
    """A text a row, without labels: learn the next token."""
    data: Copy = None
    keep: Literal["all", "final"] = "final"
    """What is left of each run in the end: the model after every stage, or the final one only.
    With all of them, recipes that come later need not make the first stages again."""
    quiet: bool = False
    """Print nothing but errors."""

    def run(self) -> None:
        """Run, and write the table and the page."""
        from rich.console import Console

        from lpaf_jax.report.compare import print_comparison
        from lpaf_jax.runs.comparison import compare

        chosen: dict[str, Any] = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default or field.name in _ALWAYS
        }
        found = compare(**chosen)
        if not self.quiet:
            console = Console(highlight=False, markup=False, emoji=False)
            print_comparison(found, console)
            console.print(f"Report: {self.out / 'compare.html'}", soft_wrap=True)
        if found["failed"]:
            names = [f"{c['recipe']}-{c['params']:g}-{c['seed']}" for c in found["failed"]]
            raise LpafError(
                f"{len(names)} of the runs failed: {', '.join(names)}; {self.out / 'compare.json'} "
                "says why, and the same command tries them again"
            )
