"""Progress a person can follow, and the same rows in a file."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

_TITLES = {"finetune": "fine-tune", "prune": "prune", "tune": "tune factors"}
_PLAIN_SECONDS = 10.0


class Progress:
    """Writes each row to `logs/train.jsonl` and a line of progress to standard error.

    On a terminal the line is rewritten in place; elsewhere (a file, CI) one is printed every ten
    seconds.

    Args:
        folder: of the run.
        quiet: print nothing.
    """

    def __init__(self, folder: Path, quiet: bool):
        self._path = folder / "logs" / "train.jsonl"
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and not quiet
        self._printed = 0.0
        self._width = 0

    def say(self, text: str) -> None:
        """One line that stays."""
        self._clear()
        self._console.print(text)

    def row(self, row: dict[str, Any]) -> None:
        """A logged step or validation of a training stage."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        title = f"{_TITLES.get(row['stage'], row['stage']):<13}"
        if "validation_accuracy" in row:
            self.say(f"{title} step {row['step']}: validation {row['validation_accuracy']:.1%}")
            return
        last = row["step"] == row["steps"]
        if not self._live and not last and time.monotonic() - self._printed < _PLAIN_SECONDS:
            return
        self._printed = time.monotonic()
        text = f"{title} step {row['step']}/{row['steps']}  loss {row['loss']:.3f}"
        for name, value in (("sparsity", "{:.0%}"), ("p", "{:.2f}")):
            if name in row:
                text += f"  {name} {value.format(row[name])}"
        left = (row["steps"] - row["step"]) * row["seconds_per_step"]
        text += f"  {_clock(left)} left"
        if self._live:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)
        else:
            self._console.print(text)

    def _clear(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def drop_rows_after(folder: Path, stage: str, step: int) -> None:
    """Forget logged rows of `stage` beyond `step`: a resumed stage logs them again."""
    path = folder / "logs" / "train.jsonl"
    if not path.is_file():
        return
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
    if len(kept) < len(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
