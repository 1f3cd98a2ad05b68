"""How long a forward pass takes, measured and not assumed."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from lpaf_jax.models.functional import as_function, parameters

# Passes before those that count: the first one compiles. Those of a large model take seconds: past
# so many of these two will do, and of the passes that count the least number.
_WARM_UP, _WARM_SECONDS = 3, 3.0
_SECONDS, _LEAST = 30.0, 5

# A batch -> what runs a forward pass of it to its end.
Prepare = Callable[[Mapping[str, np.ndarray]], Callable[[], object]]
# {model: {batch size: {median, min, max, first}}}, in milliseconds
Times = dict[str, dict[str, dict[str, float]]]


def compare_latency(
    models: Mapping[str, nnx.Module],
    *,
    batches: tuple[int, ...] = (1, 32),
    length: int = 64,
    repeats: int = 15,
) -> Times:
    """Milliseconds of a jitted forward pass: `{model: {batch: {median, min, max}}}`.

    The models take turns, so that a machine whose speed drifts treats them alike.

    Args:
        models: by name.
        batches: batch sizes. length: tokens of every row, all of them real.
        repeats: timed passes of each model and batch size, after two or three that do not count;
            fewer (at least 5) once a batch size has taken 30 seconds.
    """
    passes = {name: jax_pass(model) for name, model in models.items()}
    found = time_in_turns(passes, batches=batches, length=length, repeats=repeats)
    return {
        name: {
            size: {key: t for key, t in times.items() if key != "first"}
            for size, times in by_batch.items()
        }
        for name, by_batch in found.items()
    }


def jax_pass(model: nnx.Module) -> Prepare:
    """Forward passes of `model`, jitted, without dropout."""
    forward, params = jax.jit(as_function(model)), parameters(model)
    return lambda batch: lambda: jax.block_until_ready(forward(params, {}, batch))


def torch_pass(model: Any) -> Prepare:
    """Forward passes of a PyTorch model in evaluation, where it lies, without gradients."""
    import torch

    from lpaf_jax.checkpoints.torch_twin import takes_types

    device = next(model.parameters()).device
    with_types = takes_types(model)

    def prepare(batch: Mapping[str, np.ndarray]) -> Callable[[], object]:
        inputs = {
            name: torch.tensor(x, device=device).long()
            for name, x in batch.items()
            if with_types or name != "token_type_ids"
        }

        def run() -> None:
            with torch.inference_mode():
                model(**inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    return prepare


def time_in_turns(
    passes: Mapping[str, Prepare], *, batches: tuple[int, ...], length: int, repeats: int
) -> Times:
    """Milliseconds of the passes of several models, which take turns.

    Args:
        passes: by name.
        batches: batch sizes. length: tokens of every row, all of them real.
        repeats: see `compare_latency`.

    Returns:
        for each model and batch size the median, the least and the most, and `first`, the very
        first pass, in which JAX compiles.
    """
    result: Times = {name: {} for name in passes}
    for size in batches:
        ids = np.ones((size, length), np.int32)
        batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0}
        runs = {name: prepare(batch) for name, prepare in passes.items()}
        times: dict[str, list[float]] = {name: [] for name in passes}
        turn = partial(_turn, runs, times)
        turn()
        warm, spent = 1, 0.0
        while warm < _WARM_UP and spent < _WARM_SECONDS:
            spent += turn()
            warm += 1
        spent = 0.0
        for done in range(repeats):
            if done < _LEAST or spent <= _SECONDS:
                spent += turn()
        for name, every in times.items():
            first, measured = every[0], every[warm:]
            result[name][str(size)] = {
                "median": round(float(np.median(measured)), 3),
                "min": round(min(measured), 3),
                "max": round(max(measured), 3),
                "first": round(first, 3),
            }
    return result


def _turn(runs: Mapping[str, Callable[[], object]], times: Mapping[str, list[float]]) -> float:
    """Time a pass of each model, in milliseconds; returns the seconds of all."""
    spent = 0.0
    for name, run in runs.items():
        started = time.perf_counter()
        run()
        taken = time.perf_counter() - started
        times[name].append(1e3 * taken)
        spent += taken
    return spent
