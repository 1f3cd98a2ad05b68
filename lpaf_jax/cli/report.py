"""`lpaf report`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from lpaf_jax.core.errors import LpafError


@dataclass(frozen=True)
class Report:
    """Rebuild the report of a finished run or comparison; prints its path."""

    dir: Positional[Path]
    """Folder given as --out to `lpaf compress` or `lpaf compare`."""

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
                f"{self.dir} has no results yet: a finished run has metrics.json, a comparison "
                "compare.json"
            )
