"""The bar of the work at hand, on a terminal."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from lpaf_jax.core.progress import Work, clock

_NARROWEST, _WIDEST = 6, 20
_TIME = len(" 1:02:03 left")
# Drawing holds Python's lock for a millisecond or two, which the work wants too.
_PER_SECOND = 5


class Bar:
    """One line on a terminal: what is done, a bar, how far it is, its rate, time left and figures.

    Lines that are printed meanwhile stand above it, those on standard error among them.

    Args:
        console: of the terminal.
    """

    def __init__(self, console: Console):
        self._console = console
        self._work = Work("")
        self._pace = _Pace()
        self._drawn = BarColumn(table_column=Column(no_wrap=True))
        self._progress = RichProgress(
            _What(),
            self._drawn,
            *(TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("count", "rate")),
            _Left(Column(no_wrap=True)),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=_PER_SECOND,
            redirect_stdout=False,  # it is for results, and may be a file
        )
        self._progress.add_task("")
        (self._task,) = self._progress.tasks

    @property
    def work(self) -> Work:
        """What was shown last."""
        return self._work

    def show(self, work: Work) -> None:
        """Let the line be about `work`; the first call draws it.

        That is not done when the bar is made, so that whoever made it can close it whatever happens
        meanwhile.
        """
        if work.what != self._work.what or work.done < self._work.done:
            self._pace = _Pace()
        self._work = work
        seconds = self._pace.seconds(work.done) if work.seconds is None else work.seconds
        left = work.left
        if left is None and seconds is not None:
            left = (work.total - work.done) * seconds
        what, texts = work.what.strip(), _texts(work, seconds)
        taken = sum(1 + len(text) for text in (what, *texts.values())) + _TIME
        self._drawn.bar_width = min(_WIDEST, max(_NARROWEST, self._console.width - taken))
        self._task.total = work.total or None  # which `update` takes for no change
        self._progress.update(
            self._task.id,
            description=what,
            completed=work.done,
            begun=self._pace.begun,
            ends=None if left is None else time.monotonic() + left,
            **texts,
        )
        self._progress.start()

    def close(self) -> None:
        """Wipe the line, and show the cursor again."""
        self._progress.stop()


def _texts(work: Work, seconds: float | None) -> dict[str, Any]:
    return {
        "count": f"{work.done}/{work.total}" if work.total else "",
        "rate": "" if seconds is None else rate(seconds),
        "figures": " ".join(work.figures),
    }


class _Pace:
    """Seconds each, from the first that is done: it may have waited for the compiler."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self._first: tuple[int, float] | None = None

    def seconds(self, done: int) -> float | None:
        now = time.monotonic()
        if done > 0 and self._first is None:
            self._first = (done, now)
        if self._first is None or done <= self._first[0]:
            return None
        return (now - self._first[1]) / (done - self._first[0])


class _What(ProgressColumn):
    """What is done: of all columns the one that is cut where a terminal is narrow."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Left(ProgressColumn):
    """The time left, which falls between two steps; that since the beginning, where it is open."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        if ends is None:
            return Text(f"{clock(time.monotonic() - task.fields['begun'])} so far")
        return Text(f"{clock(max(0, ends - time.monotonic()))} left")


def rate(seconds: float) -> str:
    """`3.2 it/s`, or `2.5 s/it` where one takes longer than a second."""
    if seconds >= 1:
        return f"{seconds:.1f} s/it"
    return f"{1 / max(seconds, 1e-6):.1f} it/s"
