"""What a person sees on a terminal; tests/core/test_progress.py has what goes to a file."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lpaf_jax.core.progress import Countdown, Progress
from tests.terminal import Terminal, cursor_shown, screen


class Shown(NamedTuple):
    """Progress, and the terminal that it is shown on."""

    progress: Progress
    terminal: Terminal

    def lines(self) -> list[str]:
        """Those on the terminal, with the bar as it is by now."""
        bar = self.progress._bar
        if bar is not None:
            bar._progress.refresh()
        return self.terminal.lines()


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Shown]]:
    """To be called in a test: between its setup and itself pytest changes standard error."""
    (tmp_path / "logs").mkdir()
    with ExitStack() as stack:

        def make(**environment: str) -> Shown:
            terminal = Terminal.put_in(monkeypatch, **environment)
            progress = stack.enter_context(closing(Progress(tmp_path, quiet=False)))
            return Shown(progress, terminal)

        yield make


def row(stage: str = "prune", step: int = 10, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "step": step, "steps": 40, "loss": 0.5, "seconds_per_step": 2.0} | more


def test_a_step_of_training(shown: Callable[..., Shown]) -> None:
    progress, terminal = at = shown()
    progress.row(row(sparsity=0.25))
    (line,) = at.lines()
    assert line.split() == [
        *("prune", "━" * 5 + "╺" + "━" * 14, "10/40", "2.0", "s/it", "1:00", "left"),
        *("loss", "0.500", "sparsity", "25%"),
    ]
    assert not terminal.cursor_shown
    progress.row(row(step=39, seconds_per_step=0.25))
    (line,) = at.lines()
    assert "39/40 4.0 it/s 0:00 left loss 0.500" in line
    progress.close()
    assert at.lines() == []
    assert terminal.cursor_shown


def test_all_of_it_fits_80_columns(shown: Callable[..., Shown]) -> None:
    progress, _ = at = shown(COLUMNS="80")
    progress.row(row("tune", step=240, steps=1940, seconds_per_step=0.1, p=0.125))
    (line,) = at.lines()
    assert len(line) <= 80
    assert line.startswith("tune factors ╸━━━━━ 240/1940 10.0 it/s 2:50 left loss 0.500 p(")
    assert line.endswith("p(dense branch) 0.12")


def test_time_left_falls_between_two_steps(
    shown: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, _ = at = shown()
    progress.row(row())
    later = time.monotonic() + 15
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert "0:45 left" in at.lines()[0]


def test_lines_that_stay_stand_above_the_bar(shown: Callable[..., Shown]) -> None:
    progress, terminal = at = shown()
    progress.begin("prune", 0)
    first, bar = at.lines()
    assert first == "prune         compiles its first steps, which takes a while"
    assert bar.startswith("prune         first steps ━")
    assert bar.endswith("0:00 so far")
    progress.row(row())
    progress.say("a line [of] :one: kind")
    print("a line of another", file=sys.stderr)
    progress.warn("of a third")
    *lines, bar = at.lines()
    said = ["a line [of] :one: kind", "a line of another", "warning: of a third"]
    assert lines == [first, *said]
    assert "10/40" in bar
    progress.row(row(step=40))
    progress.say("done")  # and so is the bar
    assert terminal.lines() == [first, *said, "done"]
    assert terminal.cursor_shown


def test_after_a_validation_training_goes_on(shown: Callable[..., Shown]) -> None:
    progress, terminal = at = shown()
    progress.row(row())
    progress.batch("on validation", 1, 2)
    (bar,) = at.lines()
    assert bar.startswith("evaluate      on validation ━")
    assert "1/2" in bar
    progress.batch("on validation", 2, 2)
    progress.row({"stage": "prune", "step": 10, "validation_accuracy": 0.875})
    line, bar = at.lines()
    assert line == "prune         step 10: validation 87.5%"
    assert bar.startswith("prune ━")
    assert "loss 0.500" in bar
    progress.row(row(step=40))
    progress.row({"stage": "prune", "step": 40, "validation_accuracy": 0.875})
    assert len(terminal.lines()) == 2


def test_the_pace_of_batches_is_that_after_the_first(
    shown: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, _ = at = shown()
    begun = time.monotonic()
    for done, seconds in ((0, 0), (1, 100), (2, 104), (3, 108)):
        monkeypatch.setattr(time, "monotonic", lambda now=begun + seconds: now)
        progress.part("factorize", "batches", done, 5)
    assert "3/5 4.0 s/it 0:08 left" in at.lines()[0]
    progress.part("factorize", "matrices", 0, 6)  # which may be slower, or faster
    (bar,) = at.lines()
    assert "0/6" in bar
    assert "it" not in bar.replace("factorize", "")


def test_a_walk_has_the_time_that_its_lines_tell(
    shown: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, _ = at = shown()
    begun = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: begun)
    countdown = Countdown("blocks", 4, progress.walk)
    assert "0/4" in at.lines()[0]
    monkeypatch.setattr(time, "monotonic", lambda: begun + 100)
    assert countdown.left(1, 0.1) == ""  # it compiled
    monkeypatch.setattr(time, "monotonic", lambda: begun + 110)
    assert countdown.left(2, 0.25) == ", 0:50 left"
    (bar,) = at.lines()
    assert "2/4" in bar
    assert bar.endswith("0:50 left")
    assert countdown.left(4) == ""


def test_a_long_name_makes_no_second_line(shown: Callable[..., Shown]) -> None:
    progress, _ = at = shown(COLUMNS="70")
    progress.batch("a/very/long/name/of/a/file " * 5, 3, 9)
    (line,) = at.lines()
    assert len(line) <= 70
    assert "…" in line
    assert "3/9" in line


def test_a_dumb_terminal_gets_lines(shown: Callable[..., Shown]) -> None:
    progress, terminal = shown(TERM="dumb")
    progress.busy("nothing to be seen")
    progress.row(row())
    assert terminal.getvalue() == "prune         step 10/40  loss 0.500  1:00 left\n"


_BUSY = """
import signal, sys, time
from contextlib import closing
from lpaf_jax.cli import app
from lpaf_jax.core.progress import Ticker

# A shell starts its background jobs, and so perhaps these tests, with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Works:
    def run(self):
        with closing(Ticker()) as ticker:
            ticker.batch("some data", 1, 3)
            time.sleep(60)

app._parse = lambda argv: Works()
app.main()
"""


def test_an_interrupt_leaves_the_terminal_as_it_was() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _BUSY],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    written = ""
    with os.fdopen(ours, "rb", buffering=0) as screen_of:
        while "1/3" not in written:
            written += screen_of.read(1000).decode()
        assert not cursor_shown(written)
        process.send_signal(signal.SIGINT)
        try:
            while part := screen_of.read(1000).decode():
                written += part
        except OSError:  # on Linux, how a terminal ends that nobody writes to
            pass
    assert process.wait() == 130
    assert cursor_shown(written)
    assert screen(written) == ["lpaf: interrupted"]
