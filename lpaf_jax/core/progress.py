"""Progress a person can follow, and the same rows in a file."""

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from rich.console import Console

from lpaf_jax.core.files import atomic_write, json_text
from lpaf_jax.core.processes import is_first

if TYPE_CHECKING:
    from lpaf_jax.core.bar import Bar

Batch = TypeVar("Batch")

_TITLES = {"finetune": "fine-tune", "prune": "prune", "tune": "tune factors"}
# What --p-init and --p-end are about.
_CHANCE = "p(dense branch)"
_PLAIN_SECONDS = 10.0
# Metrics that are shares of the examples; correlations are not.
_SHARES = ("accuracy", "f1", "exact")


class Told(Protocol):
    """Who is told how far some work is: `done` of `count`, and how many seconds it will take yet.

    They are told at its beginning, too, when nothing is done.
    """

    def __call__(self, what: str, done: int, count: int, left: float | None = None) -> None: ...


def untold(what: str, done: int, count: int, left: float | None = None) -> None:
    """Nobody is told."""


class Work(NamedTuple):
    """How far some work is.

    Attributes:
        what: it is.
        done: of `total`, which is 0 where nobody knows.
        seconds: that one of them takes; None takes the mean of those that were shown.
        left: seconds until its end; None takes it from the pace.
        figures: what else there is to say.
    """

    what: str
    done: int = 0
    total: int = 0
    seconds: float | None = None
    left: float | None = None
    figures: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether all of it is done."""
        return 0 < self.total <= self.done


class Ticker:
    """Progress on standard error.

    On a terminal it is a bar, which other work replaces; elsewhere (a file, CI) a line is printed
    every ten seconds. Of several processes only the first one prints.

    Args:
        quiet: print nothing.
    """

    def __init__(self, quiet: bool = False):
        quiet = quiet or not is_first()
        # Names of models and folders are printed as they are: no markup, no emoji in them.
        self._console = Console(
            stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        # Colours may be forced on a file; a bar in one is a flood.
        self._live = self._console.is_interactive and self._console.file.isatty() and not quiet
        self._bar: Bar | None = None
        self._printed = -math.inf
        self._phase = self._told = ""

    def batch(self, what: str, done: int, count: int) -> None:
        """Of `what`, which is evaluated, `done` batches of `count` are through."""
        work = Work(f"{_title('evaluate')} {what}", done, count)
        self._show(work, f"{work.what}: batch {done}/{count}")

    def part(self, phase: str, what: str, done: int, count: int, left: float | None = None) -> None:
        """Of a part of phase `phase`, `done` of `count` are through."""
        if phase != self._phase:  # a short one need not be told of in a file
            self._phase, self._printed = phase, time.monotonic()
        work = Work(f"{_title(phase)} {what}", done, count, left=left)
        self._show(work, f"{work.what}: {done}/{count}")

    def walk(self, what: str, done: int, count: int, left: float | None = None) -> None:
        """The same of work that tells of each part in a line that stays: a bar alone."""
        if self._live:
            self._draw(Work(what, done, count, left=left))

    def busy(self, what: str) -> None:
        """`what` is under way, and how far nobody knows: on a terminal a bar that moves."""
        if self._live:
            self._draw(Work(what))

    def _show(self, work: Work, text: str, always: bool = False) -> None:
        """A bar, or the line in place of it, of which one is printed now and then."""
        if self._live:
            self._draw(work)
            return
        # What was told of is told of to its end: the next may begin at 0 under the same name.
        always = always or (work.ended and self._told == work.what)
        if always or time.monotonic() - self._printed >= _PLAIN_SECONDS:
            self._printed = time.monotonic()
            self._told = "" if work.ended else work.what
            self._console.print(text)

    def _draw(self, work: Work) -> None:
        if self._bar is None:
            from lpaf_jax.core.bar import Bar  # only terminals need it

            self._bar = Bar(self._console)
        self._bar.show(work)

    def close(self) -> None:
        """Wipe the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


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
        self._training: Work | None = None

    def say(self, text: str) -> None:
        """One line that stays, above the bar if its work goes on."""
        self._wipe_ended()
        logging.getLogger("lpaf_jax").info("%s", text)
        self._console.print(text)

    def log(self, text: str) -> None:
        """Lines for the log of the run alone."""
        logging.getLogger("lpaf_jax").info("%s", text)

    def warn(self, text: str) -> None:
        """A line that stays, of something amiss that the run goes on in spite of."""
        self._wipe_ended()
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
        self._training, self._printed = None, -math.inf  # its first row is shown at once
        self.busy(f"{_title(stage)} first steps")

    def validation(self, done: int, count: int) -> None:
        """Of the validation split, `done` batches of `count` are through."""
        self.batch("the validation split", done, count)

    def row(self, row: dict[str, Any]) -> None:
        """A logged step or validation of a training stage."""
        if is_first():
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json_text(row) + "\n")
        for name, value in row.items():
            if name.startswith("validation_"):
                self._validated(row, name.removeprefix("validation_"), value)
                return
        figures = [f"loss {row['loss']:.3f}"]
        for name, shown, value in (("sparsity", "sparsity", "{:.0%}"), ("p", _CHANCE, "{:.2f}")):
            if name in row:
                figures.append(f"{shown} {value.format(row[name])}")
        step, steps, seconds = row["step"], row["steps"], row.get("seconds_per_step")
        work = Work(_title(row["stage"]), step, steps, seconds, figures=tuple(figures))
        if seconds is not None:
            figures.append(f"{clock((steps - step) * seconds)} left")
        self._training = work
        text = "  ".join([f"{work.what} step {step}/{steps}", *figures])
        self._show(work, text, always=step == steps)

    def _validated(self, row: dict[str, Any], metric: str, value: float) -> None:
        shown = f"{value:.1%}" if metric in _SHARES else f"{value:.3f}"
        what = "" if metric == "accuracy" else f" {metric}"
        self.say(f"{_title(row['stage'])} step {row['step']}: validation{what} {shown}")
        if self._live and self._training is not None and not self._training.ended:
            self._draw(self._training)  # in the place of the validation's

    def _wipe_ended(self) -> None:
        if self._bar is not None and self._bar.work.ended:
            self.close()


def _title(stage: str) -> str:
    return f"{_TITLES.get(stage, stage):<13}"


def counted(batches: Sequence[Batch], told: Told) -> Iterator[Batch]:
    """The batches, each of which is told of when the next one is asked for."""
    for done, batch in enumerate(batches):
        told("batches looked at", done, len(batches))
        yield batch
    told("batches looked at", len(batches), len(batches))


class Countdown:
    """How long some work will take yet, by how much of it is done.

    The first part, which compiles, says nothing of the others and is left out.

    Args:
        what: it is.
        count: of its parts.
        told: is told of each.
    """

    def __init__(self, what: str, count: int, told: Told = untold):
        self._what, self._count, self._told = what, count, told
        self._first: tuple[float, float] | None = None
        told(what, 0, count)

    def left(self, done: int, share: float | None = None) -> str:
        """`, 3:20 left` where `done` parts are done; nothing at the end, or after the first one.

        Args:
            share: that they are of the work, where parts differ.
        """
        share = done / self._count if share is None else share
        now, left = time.monotonic(), None
        if self._first is None:
            self._first = now, share
        elif (known := share - self._first[1]) > 0:
            left = (now - self._first[0]) * (1 - share) / known
        self._told(self._what, done, self._count, left)
        return "" if left is None or share >= 1 else f", {clock(left)} left"


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
