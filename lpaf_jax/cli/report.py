"""`lpaf report`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from lpaf_jax.core.errors import LpafError


@dataclass(frozen=True)
class Report:
    """Make the page of a finished run, or of a comparison, again; prints where it is."""

    dir: Positional[Path]
    """The --out folder of `lpaf compress` or `lpaf compare`."""

    def run(self) -> None:
        """Write and print.

        Raises:
            LpafError: the folder holds neither, or its figures are damaged.
        """
        from lpaf_jax.report import write_report
        from lpaf_jax.report.compare import write_comparison

        if (self.dir / "metrics.json").is_file():
            print(write_report(self.dir))
        elif (self.dir / "compare.json").is_file():
            print(write_comparison(self.dir))
        else:
            raise LpafError(
                f"{self.dir} holds no figures yet: a run has metrics.json once it is finished, a "
                "comparison compare.json"
            )
