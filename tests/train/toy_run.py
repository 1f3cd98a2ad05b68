"""Pruning of the toy in processes that a test may kill: `toy_run.py CACHE`.

This process imports, which takes seconds, and forks a process for each line it is given: JSON
`{"folder": of the checkpoints, "every": seconds between two, "result": file of the final state}`.
Each tells its id, the step it starts from and each step it has made; `ended`, with the exit code,
is told of it. What the first compiles lies in the folder CACHE for the others.
"""

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}

import jax
import numpy as np
import optax

import lpaf_jax.train.storage  # noqa: F401  # else each process would import orbax
from lpaf_jax.train import (
    Checkpoints,
    cubic_sparsity,
    loop,
    make_step,
    prune,
    run_steps,
    task_loss,
)
from tests.train.toy import forward, stage_of, start

STEPS = 80


class Teller:
    """A monitor that tells of each step, which then takes a moment."""

    def row(self, row: dict[str, Any]) -> None:
        if "loss" in row:
            tell("step", row["step"])
            time.sleep(0.005)


def tell(*words: object) -> None:
    print(*words, flush=True)


def run(folder: str, every: float, result: str) -> None:
    tell("pid", os.getpid())
    jax.config.update("jax_disable_most_optimizations", True)
    cache = Path(sys.argv[1])
    jax.config.update("jax_compilation_cache_dir", str(cache))
    # The first fills it, all others only read: one that is killed may leave half a file.
    filled = any(cache.iterdir())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9 if filled else 0.1)
    loop.LOG_EVERY = 1
    optimizer = prune(
        optax.adamw(0.01),
        cubic_sparsity(STEPS, start=10, cooldown=20, final=0.3),
        {"words": True, "head": False},
        mask_every=3,
    )
    checkpoints = Checkpoints(Path(folder), every=every)
    state = checkpoints.restore(start(optimizer))
    tell("start", int(state.step))
    state = run_steps(
        stage_of(STEPS),
        make_step(task_loss(forward), optimizer),
        state,
        {},
        until=STEPS,
        monitor=Teller(),
        checkpoints=checkpoints,
    )
    np.savez(result, *map(np.asarray, jax.tree.leaves(state)))


if __name__ == "__main__":
    # Orbax warns of a checkpoint that a kill left without metadata; the command hides that, too.
    logging.getLogger("absl").setLevel(logging.ERROR)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(**json.loads(line))
            break
        _, status = os.waitpid(child, 0)
        tell("ended", os.waitstatus_to_exitcode(status))
