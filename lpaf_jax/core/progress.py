"""Progress a person can follow, and the same rows in a file."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from lpaf_jax.core.files import atomic_write, json_text
from lpaf_jax.core.processes import is_first

_TITLES = {"finetune": "fine-tune", "prune": "prune", "tune": "tune factors"}
# What --p-init and --p-end are about.
_CHANCE = "p(dense branch)"
_PLAIN_SECONDS = 10.0
# Metrics that are shares of the examples; correlations are not.
_SHARES = ("accuracy", "f1", "exact")


class Ticker:
    """A line of progress on standard error.

    On a terminal it is rewritten in place; elsewhere (a file, CI) one is printed every ten seconds.
    Of several processes only the first one prints.

    Args:
        quiet: print nothing.
    """

    def __init__(self, quiet: bool = False):
        quiet = quiet or not is_first()
        # Names of models and folders are printed as they are: no markup, no emoji in them.
        self._console = Console(
            stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._live = self._console.is_terminal and not quiet
        self._printed = -math.inf
        self._width = 0

    def batch(self, what: str, done: int, count: int) -> None:
        """Of `what`, which is evaluated, `done` batches of `count` are through."""
        self._show(f"{_title('evaluate')} {what}: batch {done}/{count}")

    def _show(self, text: str, always: bool = False) -> None:
        """A line that the next one may replace; elsewhere than on a terminal, one now and then."""
        recent = time.monotonic() - self._printed < _PLAIN_SECONDS
        if not self._live and not always and recent:
            return
        self._printed = time.monotonic()
        if self._live:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)
        else:
            self._console.print(text)

    def close(self) -> None:
        """Wipe the line that is rewritten, if one stands."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0


class Progress(Ticker):
    """Writes each row to `logs/train.jsonl` and a line of progress to standard error.

    Lines that stay go to the package's logger too, and with it to the log of the run.

    Args:
        folder: of the run.
        quiet: print nothing.
    """

    def __init__(self, folder: Path, quiet: bool):
        super().__init__(quiet)
        self._path = log_path(folder)

    def say(self, text: str) -> None:
        """One line that stays."""
        self.close()
        logging.getLogger("lpaf_jax").info("%s", text)
        self._console.print(text)

    def log(self, text: str) -> None:
        """Lines for the log of the run alone."""
        logging.getLogger("lpaf_jax").info("%s", text)

    def warn(self, text: str) -> None:
        """A line that stays, of something amiss that the run goes on in spite of."""
        self.close()
        logging.getLogger("lpaf_jax").warning("%s", text)
        self._console.print(f"warning: {text}")

    def begin(self, stage: str, step: int, *, alone: bool = False) -> None:
        """Training stage `stage` sets out from `step`: rows it logged beyond come again.

        Args:
            alone: it was not broken off there, but leaves the dense branch behind.
        """
        if is_first():
            rows = read_rows(self._path)
            kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
            write_rows(self._path, kept)
        if alone:
            news = "p is 0: goes on with the factors alone; compiles again"
        else:
            on = f"goes on after step {step}; " if step else ""
            news = f"{on}compiles its first steps, which takes a while"
        self.say(f"{_title(stage)} {news}")
        self._printed = -math.inf  # its first row is shown at once

    def row(self, row: dict[str, Any]) -> None:
        """A logged step or validation of a training stage."""
        if is_first():
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json_text(row) + "\n")
        title = _title(row["stage"])
        for name, value in row.items():
            if name.startswith("validation_"):
                metric = name.removeprefix("validation_")
                shown = f"{value:.1%}" if metric in _SHARES else f"{value:.3f}"
                what = "" if metric == "accuracy" else f" {metric}"
                self.say(f"{title} step {row['step']}: validation{what} {shown}")
                return
        text = f"{title} step {row['step']}/{row['steps']}  loss {row['loss']:.3f}"
        for name, shown, value in (("sparsity", "sparsity", "{:.0%}"), ("p", _CHANCE, "{:.2f}")):
            if name in row:
                text += f"  {shown} {value.format(row[name])}"
        if "seconds_per_step" in row:
            left = (row["steps"] - row["step"]) * row["seconds_per_step"]
            text += f"  {clock(left)} left"
        self._show(text, always=row["step"] == row["steps"])


def _title(stage: str) -> str:
    return f"{_TITLES.get(stage, stage):<13}"


class Countdown:
    """How long some work will take yet, by how much of it is done."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def left(self, share: float) -> str:
        """`, 3:20 left` where a share in (0, 1) of the work is done; nothing at its end."""
        if share >= 1:
            return ""
        return f", {clock((time.monotonic() - self._begun) * (1 / share - 1))} left"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def log_path(folder: Path) -> Path:
    """Where the rows of the run in `folder` lie."""
    return folder / "logs" / "train.jsonl"


def borrow_rows(source: Path, folder: Path, stage: str) -> None:
    """Take the rows of `stage` over from the run in `source`."""
    path = log_path(folder)
    rows = [row for row in read_rows(path) if row["stage"] != stage]
    write_rows(path, rows + [r for r in read_rows(log_path(source)) if r["stage"] == stage])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows in a log; half a line, which a killed process may leave, is no row."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"stage", "step"} <= row.keys():
            rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Let the log hold these rows."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json_text(row) + "\n" for row in rows), encoding="utf-8")
