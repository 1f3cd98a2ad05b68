"""Schedules: callables `step -> value`, as in optax, usable inside a jitted step."""

from collections.abc import Callable
from math import inf

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

Schedule = Callable[[ArrayLike], Array]


def cubic_sparsity(steps: int, start: int, cooldown: int, final: float) -> Schedule:
    """Share of weights kept at step t, falling from 1 to `final` along a cubic.

        v_t = 1                                              0 ≤ t < t_i
        v_t = v_f + (1 − v_f) ((T − t_f − t)/(T − t_f − t_i))³    t_i ≤ t < T − t_f
        v_t = v_f                                            otherwise

    The first step keeps everything, and the share is exactly 1 up to t_i and exactly `final` at the
    end of every stage: where t_i and t_f leave no step between, it falls at once at T − t_f.

    Args:
        steps: T, steps of the whole stage.
        start: t_i, steps before pruning begins.
        cooldown: t_f, steps after it has ended.
        final: v_f, the share kept at the end.

    Raises:
        ValueError: a number of steps is negative, or `final` is no share.

    Source: Zhu & Gupta, "To prune, or not to prune", 2017; Ren & Zhu, LPAF, 2024.
    """
    for name, count in {"steps": steps, "start": start, "cooldown": cooldown}.items():
        _demand("cubic_sparsity", name, count, 0, inf)
    _demand("cubic_sparsity", "final", final, 0, 1)
    end = max(steps - cooldown, 1)
    span = max(end - start, 1)

    def kept(step: ArrayLike) -> Array:
        left = jnp.clip((end - jnp.asarray(step, jnp.float32)) / span, 0.0, 1.0)
        return final + (1.0 - final) * left**3

    return kept


def linear_replacement(steps: int, initial: float) -> Schedule:
    """Probability of taking the dense branch: `p_t = max(0, p_init − d t)`, 0 from `steps` on.

    Raises:
        ValueError: `steps` is negative, or `initial` is no probability.
    """
    _demand("linear_replacement", "steps", steps, 0, inf)
    _demand("linear_replacement", "initial", initial, 0, 1)

    def probability(step: ArrayLike) -> Array:
        left = steps - jnp.asarray(step, jnp.float32)
        return initial * jnp.maximum(left / max(steps, 1), 0.0)

    return probability


def warmup_linear(peak: float, steps: int, warmup: int) -> optax.Schedule:
    """Learning rate: linear from 0 to `peak` over `warmup` steps, then linear to 0 at `steps`.

    Raises:
        ValueError: `peak` or `steps` is negative, or `warmup` is not within the steps.
    """
    _demand("warmup_linear", "peak", peak, 0, inf)
    _demand("warmup_linear", "steps", steps, 0, inf)
    _demand("warmup_linear", "warmup", warmup, 0, steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.linear_schedule(peak, 0.0, max(steps - warmup, 1)),
        ],
        [warmup],
    )


def _demand(schedule: str, name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        range_ = f"at least {least}" if most == inf else f"in [{least}, {most}]"
        raise ValueError(f"{schedule}: {name} is {value}, but must be {range_}")
