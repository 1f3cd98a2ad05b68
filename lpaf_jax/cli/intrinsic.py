"""`lpaf intrinsic`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lpaf_jax.tasks.options import Copy, LabelColumn, PairColumn, TextColumn

_DIMS = arg(metavar="INT", help_behavior_hint="(default: ten steps from 10 to 10,000)")


@dataclass(frozen=True)
class Intrinsic:
    """Find how many numbers a task needs: fine-tune within random subspaces.

    A search that was stopped goes on with the same command.
    """

    model: Positional[str]
    """`minilm`, a folder with a Hugging Face checkpoint, or a hub id."""
    task: Annotated[str, arg(metavar="TASK")]
    """As for compress."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for intrinsic.json and intrinsic.html."""
    kind: Literal["did", "said"] = "did"
    """One random map for all parameters, or one for each tensor, and a scale."""
    dims: Annotated[tuple[int, ...], _DIMS] = ()
    """The dimensions to try."""
    seeds: Annotated[tuple[int, ...], arg(metavar="INT")] = (0, 1)
    """Each dimension is trained with each of these."""
    rates: Annotated[tuple[float, ...], arg(metavar="FLOAT")] = (0.25, 1.0, 4.0)
    """And with each of these times the learning rate that moves the parameters as far."""
    bisections: int = 2
    """How often the gap around nine tenths is halved."""
    finetune_epochs: float = 2.0
    """Epochs of every training."""
    finetune_lr: float = 8e-5
    """Peak learning rate of fine-tuning, from which the others follow."""
    batch: int = 32
    """Examples a step."""
    length: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(optional)")] = None
    """Longest text in tokens."""
    limit: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(optional)")] = None
    """Take so many training examples."""
    text_column: TextColumn = None
    label_column: LabelColumn = None
    pair_column: PairColumn = None
    data: Copy = None
    quiet: bool = False
    """Print the result alone."""

    def run(self) -> None:
        """Search, and print."""
        import dataclasses

        from lpaf_jax.report.intrinsic import lines
        from lpaf_jax.runs.intrinsic import DIMENSIONS, intrinsic_dimension

        chosen = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        chosen["dims"] = chosen["dims"] or DIMENSIONS
        found = intrinsic_dimension(**chosen)
        for line in lines(found):
            print(line)
        print(self.out / "intrinsic.html")
