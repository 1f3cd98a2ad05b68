"""How long a step takes, for an estimate of the time that is left."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_WINDOWS = 5
# Steps are of several lengths, and the first ones the machine is slow at: fewer tell nothing.
_LEAST = 5


class Pace:
    """Mean seconds a step over the last windows, without what is no step: `aside`.

    A mean and not a median: what is left is a sum over steps of all lengths.

    Args:
        clock: seconds, from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._windows: deque[tuple[float, int]] = deque(maxlen=_WINDOWS)
        self._begun, self._aside, self._steps = clock(), 0.0, 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave out what is done here: compilation, validation, writing."""
        begun = self._clock()
        yield
        self._aside += self._clock() - begun

    def count(self) -> None:
        """A step was taken."""
        self._steps += 1

    def seconds(self) -> float | None:
        """Close a window; None while fewer steps were counted than give an estimate."""
        now = self._clock()
        if self._steps:
            self._windows.append((now - self._begun - self._aside, self._steps))
        self._begun, self._aside, self._steps = now, 0.0, 0
        steps = sum(count for _, count in self._windows)
        return sum(seconds for seconds, _ in self._windows) / steps if steps >= _LEAST else None
