"""SIGTERM, as a cluster sends it before it takes a machine away: finish what runs, save, go."""

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

# JAX names a question to come, and the steps of every stage begin at 1 again.
_ASKED = itertools.count(1)


@contextmanager
def until_terminated() -> Iterator[Callable[[int], bool]]:
    """Hold SIGTERM back; `told(step)` says whether it has come.

    With several processes JAX's own service sees the signal, which must be asked at every step: it
    is then told at one and the same step on all processes, whichever of them was sent it. Outside
    of training nobody asks, and the signal waits for the next step.
    """
    if jax.process_count() > 1:
        yield lambda step: multihost_utils.reached_preemption_sync_point(next(_ASKED))
        return
    if threading.current_thread() is not threading.main_thread():  # signals are not ours there
        yield lambda step: False
        return
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        came.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda step: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
    if came.is_set():  # after the last question: it is for whoever had the signal before
        signal.raise_signal(signal.SIGTERM)
