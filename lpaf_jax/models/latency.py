"""How long a forward pass takes, measured and not assumed."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from lpaf_jax.models.functional import as_function, parameters

_WARM_UP = 3


def compare_latency(
    models: Mapping[str, nnx.Module],
    *,
    batches: tuple[int, ...] = (1, 32),
    length: int = 64,
    repeats: int = 15,
) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of a jitted forward pass: `{model: {batch: {median, min, max}}}`.

    The models take turns, so that a machine whose speed drifts treats them alike.

    Args:
        models: by name.
        batches: batch sizes. length: tokens of every row, all of them real.
        repeats: timed passes of each model and batch size, after a few that are not counted.
    """
    runs = {
        name: (jax.jit(as_function(model)), parameters(model)) for name, model in models.items()
    }
    result: dict[str, dict[str, Any]] = {name: {} for name in models}
    for size in batches:
        ids = np.ones((size, length), np.int32)
        batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0}
        times: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(_WARM_UP + repeats):
            for name, (forward, params) in runs.items():
                started = time.perf_counter()
                jax.block_until_ready(forward(params, {}, batch))
                if turn >= _WARM_UP:
                    times[name].append(1e3 * (time.perf_counter() - started))
        for name, measured in times.items():
            result[name][str(size)] = {
                "median": round(float(np.median(measured)), 3),
                "min": round(min(measured), 3),
                "max": round(max(measured), 3),
            }
    return result
