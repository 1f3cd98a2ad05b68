"""What both sides of `train.py` do alike: the job they are given, its batches, its clock."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

WARM_UP = 3
TOTAL_STEPS = 1000  # of the schedules; what is timed lies at their beginning
KEPT = 0.3  # share of the weights that the masks of mixed layers keep
DRAW = 0.5  # chance of the dense branch in mixed layers


class Job(NamedTuple):
    """What one process measures.

    Attributes:
        group: rows that are measured together, taking turns; see `train.GROUPS`.
        rank: of every factorization of the group; None where it has none.
        folder: of the pretrained model.
        steps: of a window; windows: of a row and length.
        threads: on CPU, where JAX takes as many as it may run on.
        platform: where JAX computes, "cpu" or "gpu"; None where it is not known yet.
    """

    group: str
    rank: int | None
    folder: str
    lengths: list[int]
    batch: int
    steps: int
    windows: int
    dtype: str
    threads: int
    platform: str | None


def read_job() -> Job:
    return Job(**json.loads(sys.argv[1]))


def random_batch(job: Job, words: int, length: int) -> dict[str, np.ndarray]:
    """Random tokens without padding, as numpy arrays: a training loop hands over such."""
    random = np.random.default_rng(length)
    shape = (job.batch, length)
    return {
        "input_ids": random.integers(words, size=shape, dtype=np.int32),
        "attention_mask": np.ones(shape, np.int32),
        "token_type_ids": np.zeros(shape, np.int32),
        "labels": random.integers(2, size=job.batch, dtype=np.int32),
        "weight": np.ones(job.batch, np.float32),
    }


def take_turns(
    rows: dict[str, Callable[[], Any]], finish: Callable[[Any], Any], job: Job
) -> dict[str, list[float]]:
    """Milliseconds a step in each window of every row.

    A window is waited for at its end only, as in a training loop. The rows take turns, in the other
    order every other time, so that a machine whose speed drifts treats them alike.

    Args:
        rows: one step each, returning what `finish` waits for.
    """
    for step in rows.values():
        for _ in range(WARM_UP):
            finish(step())
    found: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(job.windows):
        for name in list(rows)[:: 1 if turn % 2 == 0 else -1]:
            started = time.perf_counter()
            for _ in range(job.steps):
                last = rows[name]()
            finish(last)
            found[name].append(1e3 * (time.perf_counter() - started) / job.steps)
    return found
