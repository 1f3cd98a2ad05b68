"""`lpaf intrinsic`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lpaf_jax.tasks.options import Copy, LabelColumn, PairColumn, TextColumn

_DIMS = arg(metavar="INT", help_behavior_hint="(default: up to ten from 10 to 10,000)")


@dataclass(frozen=True)
class Intrinsic:
    """Estimate the intrinsic dimension of a task by fine-tuning in random subspaces.

    It trains once for every combination of dimension, seed and rate, and each
    training takes longer than fine-tuning. The same command resumes an
    interrupted search.
    """

    model: Positional[str]
    """`minilm`, a folder with a Hugging Face checkpoint, or a hub id."""
    task: Annotated[str, arg(metavar="TASK")]
    """Name of a task or a file, as for compress."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write intrinsic.json and intrinsic.html to."""
    kind: Literal["did", "said"] = "did"
    """One random map for all parameters (DID), or one map and one scale per tensor (SAID)."""
    dims: Annotated[tuple[int, ...], _DIMS] = ()
    """Dimensions to try."""
    seeds: Annotated[tuple[int, ...], arg(metavar="INT")] = (0, 1)
    """Seeds for each dimension."""
    rates: Annotated[tuple[float, ...], arg(metavar="FLOAT")] = (0.25, 1.0, 4.0)
    """Learning rates for each dimension, relative to the one with updates as large as
    fine-tuning's."""
    bisections: int = 2
    """Bisection steps around nine tenths of fine-tuning's gain, or of its score."""
    finetune_epochs: float = 2.0
    """Epochs of each training."""
    finetune_lr: float = 8e-5
    """Peak learning rate of full fine-tuning, from which the others are derived."""
    batch: int = 32
    """Examples per training step."""
    length: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(optional)")] = None
    """Maximum length in tokens."""
    limit: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(optional)")] = None
    """Maximum number of training examples."""
    text_column: TextColumn = None
    label_column: LabelColumn = None
    pair_column: PairColumn = None
    data: Copy = None
    quiet: bool = False
    """Print only the result."""

    def run(self) -> None:
        """Search, and print."""
        import dataclasses

        from lpaf_jax.report.intrinsic import lines
        from lpaf_jax.runs.intrinsic import intrinsic_dimension

        chosen = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        chosen["dims"] = chosen["dims"] or None
        found = intrinsic_dimension(**chosen)
        for line in lines(found):
            print(line)
        print(self.out / "intrinsic.html")
