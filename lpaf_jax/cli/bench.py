"""`lpaf bench`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Bench:
    """Time a compressed and the dense model, in JAX and in PyTorch if installed.

    Times forward passes without dropout; compilation is reported separately.
    """

    dir: Positional[Path]
    """Folder of a run or of a compressed model."""
    against: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: the run's)")
    ] = None
    """Folder of the dense model, or of a run that kept its dense model."""
    batches: Annotated[tuple[int, ...], arg(metavar="INT [INT ...]")] = (1, 8, 32)
    """Batch sizes."""
    length: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 64)")] = None
    """Length of every text in tokens."""
    repeats: int = 20
    """Timed passes for each model and batch size."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """JSON file to write all figures to."""

    def run(self) -> None:
        """Measure, print, and write."""
        from rich.console import Console

        from lpaf_jax.core.files import write_json
        from lpaf_jax.evaluation.bench import find_pair, run_benchmark
        from lpaf_jax.report.bench import print_benchmark, verdict

        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        found = run_benchmark(
            find_pair(self.dir, self.against),
            batches=self.batches,
            length=self.length,
            repeats=self.repeats,
            say=console.print,
        )
        print_benchmark(found, Console(highlight=False, markup=False, emoji=False))
        if self.json is not None:  # last: a file that cannot be written costs no measurement
            write_json(self.json, found | {"verdict": verdict(found)})
