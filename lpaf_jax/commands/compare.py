"""`lpaf compare`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compare:
    """Run several recipes on one model and data, and compare them."""

    def run(self) -> None:
        """Run, and write the table and the page."""
