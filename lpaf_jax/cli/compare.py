"""`lpaf compare`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from lpaf_jax.core.errors import LpafError
from lpaf_jax.tasks.options import Copy, LabelColumn, PairColumn, Reuse, TextColumn

_OPTIONAL = "(optional)"
_OWN = "(default: the recipe's)"
_FILE = arg(metavar="FILE", help_behavior_hint=_OPTIONAL)
_INT = arg(metavar="INT", help_behavior_hint=_OPTIONAL)
# What is said even where it is the default, as the function has no other.
_ALWAYS = ("model", "out", "task", "recipes", "params", "seeds", "baseline")


@dataclass(frozen=True)
class Compare:
    """Run several recipes on the same model and data, and compare them.

    Each combination of recipe, size and seed is an ordinary run in DIR/runs; runs share finished
    stages. The same command resumes an interrupted comparison; a finished one can be extended with
    more recipes, sizes or seeds. Writes compare.json and compare.html.
    """

    model: Positional[str]
    """`minilm`, `smollm2`, a folder with a Hugging Face checkpoint, a .gguf file, or a hub id."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the runs and the report."""
    recipes: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")]
    """Recipes to compare, as for compress; `lpaf recipes` lists them."""
    task: Annotated[str | None, arg(metavar="TASK", help_behavior_hint=_OPTIONAL)] = None
    """Name of a task or a file, as for compress; without a task, give --calibration."""
    params: Annotated[tuple[float, ...], arg(metavar="FLOAT [FLOAT ...]")] = (0.5,)
    """Shares of the parameters in the compressible matrices to keep."""
    seeds: Annotated[tuple[int, ...], arg(metavar="INT [INT ...]")] = (0,)
    """Seeds for every recipe and size; the table shows means over them."""
    baseline: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: svd-ft, or the first)")
    ] = None
    """Recipe that the others are tested against."""
    preset: Literal["quick", "standard", "paper"] = "standard"
    """Defaults for all stages, as for compress."""
    calibration: Annotated[Path | None, _FILE] = None
    """Calibration text for compression without a task."""
    held_out: Annotated[Path | None, _FILE] = None
    """Text for evaluation without a task."""
    samples: int = 128
    """Maximum number of calibration sequences."""
    ranks: Annotated[str | None, arg(metavar="NAME", help_behavior_hint=_OWN)] = None
    """Rule that sets the ranks, in all recipes; `lpaf recipes` lists all."""
    finetune_epochs: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=_OWN)] = None
    """Epochs of fine-tuning, in all recipes that fine-tune."""
    tune_epochs: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=_OWN)] = None
    """Epochs of tuning after the factorization, in all recipes that tune; 0 skips it."""
    transfer: Annotated[Path | None, _FILE] = None
    """File of unlabelled texts, labelled by the dense model, in all recipes that tune."""
    transfer_samples: Annotated[int | None, _INT] = None
    """Maximum number of these texts."""
    batch: int = 32
    """Examples per training step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation in training."""
    length: Annotated[int | None, _INT] = None
    """Maximum length in tokens, as for compress."""
    limit: Annotated[int | None, _INT] = None
    """Maximum number of training examples."""
    text_column: TextColumn = None
    label_column: LabelColumn = None
    pair_column: PairColumn = None
    regression: bool = False
    """Treat the labels of a file as numbers to predict, not as classes."""
    language_model: bool = False
    """Train on next-token prediction with one unlabelled text per row."""
    data: Copy = None
    nf4: bool = False
    """Also evaluate the dense and the compressed models with their matrices in NF4 (4 bits per
    weight)."""
    reuse: Reuse = ()
    keep: Literal["all", "final"] = "final"
    """Keep the model after every stage of each run, or only the final one.
    With `all`, recipes added later can reuse the first stages."""
    quiet: bool = False
    """Print only errors."""

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
                f"{len(names)} of the runs failed: {', '.join(names)}; see "
                f"{self.out / 'compare.json'} for the reasons; the same command retries them"
            )
