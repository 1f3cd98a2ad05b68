"""SIGTERM is held back, told once, and never lost."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lpaf_jax.train.interrupt import until_terminated


@contextmanager
def noted() -> Iterator[list[int]]:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_is_told_at_the_next_question_and_reaches_its_owner_in_the_end() -> None:
    with noted() as came:
        with until_terminated() as told:
            assert not told(1)
            signal.raise_signal(signal.SIGTERM)
            assert told(2)
            assert came == []
        assert came == [signal.SIGTERM]


def test_a_signal_after_the_last_question_is_not_lost() -> None:
    with noted() as came:
        with until_terminated() as told:
            assert not told(1)
            signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
        with until_terminated() as told:
            assert not told(1)
        assert came == [signal.SIGTERM]


def test_an_error_passes_and_the_handler_is_given_back() -> None:
    with noted() as came:
        with pytest.raises(KeyError), until_terminated():
            raise KeyError
        signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]


def test_processes_ask_with_numbers_that_only_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    # JAX tells of a signal at the number after the highest it was asked for.
    asked: list[int] = []

    def reached(number: int) -> bool:
        asked.append(number)
        return False

    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", reached)
    for _ in range(2):  # two stages, each from its first step
        with until_terminated() as told:
            for step in (1, 2, 3):
                assert not told(step)
    assert asked == list(range(asked[0], asked[0] + 6))
