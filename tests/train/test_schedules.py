"""Schedules against plain Python floats."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpaf_jax.train import cubic_sparsity, linear_replacement, warmup_linear


def at(schedule: Callable, steps: np.ndarray) -> np.ndarray:
    """The values inside a compiled step, where the step is a traced int32."""
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32)))


STEPS = np.arange(50)
SHARES = st.just(0.0) | st.floats(1e-30, 1)  # JAX on CPU takes smaller ones for 0


def cubic(t: int, T: int, t_i: int, t_f: int, v_f: float) -> float:
    if t < t_i:
        return 1.0
    if t < T - t_f:
        return v_f + (1.0 - v_f) * ((T - t_f - t) / (T - t_f - t_i)) ** 3
    return v_f


@pytest.mark.parametrize(
    ("T", "t_i", "t_f", "v_f"),
    [(100, 10, 30, 0.1), (60, 0, 0, 0.5), (7, 2, 3, 0.25), (12, 0, 11, 0.3), (12, 6, 6, 0.3)],
)
def test_cubic_is_the_formula(T: int, t_i: int, t_f: int, v_f: float) -> None:
    steps = np.arange(2 * T)
    found = at(cubic_sparsity(T, start=t_i, cooldown=t_f, final=v_f), steps)
    np.testing.assert_allclose(found, [cubic(t, T, t_i, t_f, v_f) for t in steps], rtol=1e-6)
    assert (found[: t_i + 1] == 1).all() or t_i == T - t_f  # v_t is 1 at t_i itself
    assert (found[T - t_f :] == np.float32(v_f)).all()
    assert (np.diff(found) <= 0).all()


def test_cubic_that_keeps_everything() -> None:
    assert (at(cubic_sparsity(20, start=5, cooldown=5, final=1.0), np.arange(30)) == 1).all()


def test_cubic_takes_a_python_step() -> None:
    # As the log of a run asks for it.
    assert float(cubic_sparsity(100, 10, 30, 0.1)(40)) == pytest.approx(0.1 + 0.9 / 8)


def test_replacement_falls_in_a_line_to_zero() -> None:
    found = at(linear_replacement(10, 0.5), np.arange(15))
    expected = [max(0.0, 0.5 - 0.05 * t) for t in range(15)]
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert found[0] == 0.5
    assert (found[10:] == 0).all()


def test_replacement_over_no_steps_is_zero() -> None:
    assert (at(linear_replacement(0, 0.5), np.arange(3)) == 0).all()


# Stages of one step, stages that are all warm-up and cooldown, and more of both than of steps.
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 40), st.integers(0, 45), st.integers(0, 45), SHARES)
def test_cubic_at_its_corners(T: int, t_i: int, t_f: int, v_f: float) -> None:
    kept = cubic_sparsity(T, start=t_i, cooldown=t_f, final=v_f)
    found = np.asarray(kept(STEPS))  # not compiled anew for each of many schedules
    end = max(T - t_f, 1)
    assert found[0] == 1
    assert (found[: min(t_i, end - 1) + 1] == 1).all()
    assert (found[end:] == np.float32(v_f)).all()
    assert (np.diff(found) <= 0).all()
    if t_i + t_f < T:
        expected = [cubic(t, T, t_i, t_f, v_f) for t in range(len(found))]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 40), SHARES)
def test_replacement_at_its_corners(T: int, initial: float) -> None:
    found = np.asarray(linear_replacement(T, initial)(STEPS))
    assert found[0] == np.float32(initial)
    assert (found[T:] == 0).all()
    assert (np.diff(found) <= 0).all()
    assert found[T - 1] > 0 or initial == 0


SCHEDULES = {
    "cubic": cubic_sparsity(20, start=3, cooldown=6, final=0.2),
    "replacement": linear_replacement(20, 0.5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_is_the_same_compiled_or_not_and_of_any_integer(name: str) -> None:
    schedule = SCHEDULES[name]
    compiled = at(schedule, np.arange(25))
    for t in (0, 3, 10, 14, 24):
        for step in (t, np.int64(t), jnp.int32(t), jnp.uint32(t)):
            np.testing.assert_allclose(schedule(step), compiled[t], rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_serves_wherever_optax_takes_a_schedule(name: str) -> None:
    schedule = SCHEDULES[name]
    joined = optax.join_schedules([optax.constant_schedule(1.0), schedule], [5])
    np.testing.assert_allclose(at(joined, np.arange(30))[5:], at(schedule, np.arange(25)))
    optimizer = optax.sgd(schedule)
    state, update = optimizer.init(jnp.float32(0)), jax.jit(optimizer.update)
    for t in range(20):
        updates, state = update(jnp.float32(1), state)
        assert float(updates) == pytest.approx(-float(schedule(t)), rel=1e-6)


@pytest.mark.parametrize("warmup", [0, 1, 10, 50])
def test_warmup(warmup: int) -> None:
    T, peak = 50, 3e-5
    expected = [
        peak * t / warmup if t < warmup else peak * max(0.0, 1 - (t - warmup) / max(T - warmup, 1))
        for t in range(60)
    ]
    found = at(warmup_linear(peak, T, warmup), np.arange(60))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)
    assert found.argmax() == warmup


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (lambda: cubic_sparsity(-1, 0, 0, 0.5), "cubic_sparsity: steps is -1"),
        (lambda: cubic_sparsity(10, -2, 0, 0.5), "start is -2"),
        (lambda: cubic_sparsity(10, 0, -3, 0.5), "cooldown is -3"),
        (lambda: cubic_sparsity(10, 0, 0, 2.0), "final is 2.0, but must be in [0, 1]"),
        (lambda: cubic_sparsity(10, 0, 0, float("nan")), "final is nan"),
        (lambda: linear_replacement(-1, 0.5), "linear_replacement: steps is -1"),
        (lambda: linear_replacement(10, 1.5), "initial is 1.5"),
        (lambda: warmup_linear(1e-3, -1, 0), "warmup_linear: steps is -1"),
        (lambda: warmup_linear(1e-3, 10, -1), "warmup is -1"),
        (lambda: warmup_linear(1e-3, 10, 11), "warmup is 11, but must be in [0, 10]"),
        (lambda: warmup_linear(-1e-3, 10, 1), "peak is -0.001"),
    ],
)
def test_what_cannot_be_is_told_at_once(schedule: Callable, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        schedule()
