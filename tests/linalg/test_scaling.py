"""Every solver over the whole range of exponents, against numpy near 1."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import (
    LowRank,
    TensorTrain,
    balance,
    effective_rank,
    energy_rank,
    metric_svd,
    nearest_kronecker,
    randomized_svd,
    singular_values,
    stable_rank,
    svd,
    tensor_train,
    weighted_als,
    weighted_error,
    weighted_svd,
)
from lpaf_jax.linalg.scaling import exponent, from_unit, shift, to_unit

SHAPE, RANK = (12, 10), 3
# Powers of two: a scaled problem is then the same problem. The last few before the end of the
# normal numbers, and some beyond it, where a float has fewer digits.
POWERS = {
    np.float32: [-140, -126, -120, -90, -66, -64, -62, 0, 60, 63, 64, 90, 120, 127],
    np.float64: [-1060, -1022, -1000, -600, -520, 0, 511, 520, 600, 1000, 1023],
}
DTYPES = list(POWERS)


@pytest.fixture(params=DTYPES, ids=["float32", "float64"])
def dtype(request: Any) -> Any:
    with jax.enable_x64(request.param is np.float64):
        yield request.param


class Problem:
    """A matrix, importance and metric with largest entries just below 1."""

    def __init__(self, rng: np.random.Generator):
        features = rng.normal(size=(40, SHAPE[0])) * np.logspace(0, -1, SHAPE[0])
        self.w = self._rounded(rng.normal(size=SHAPE))
        self.importance = self._rounded(np.exp(rng.normal(size=SHAPE)))
        self.metric = self._rounded(features.T @ features)
        self.aim = rng.normal(size=SHAPE)

    @staticmethod
    def _rounded(x: np.ndarray) -> np.ndarray:
        """To 8 bits, which numbers a little below the normal ones still hold."""
        return np.round(x / np.abs(x).max() * 255) / 256


@pytest.fixture
def problem(rng: np.random.Generator) -> Problem:
    return Problem(rng)


def times(x: Any, power: int, dtype: Any) -> Any:
    return np.ldexp(np.asarray(x, np.float64), power).astype(dtype)


def product(f: LowRank, power: int) -> np.ndarray:
    """`2^-power AB` in float64, whatever the power."""
    half = power // 2
    a, b = (np.asarray(x, np.float64) for x in f)
    return np.ldexp(a, -half) @ np.ldexp(b, half - power)


def near(dtype: Any) -> float:
    return 2e-5 if dtype == np.float32 else 1e-12


@pytest.mark.parametrize("dtype", DTYPES, indirect=True)
def test_a_unit_is_exact(dtype: Any, rng: np.random.Generator) -> None:
    for power in [*POWERS[dtype], -149 if dtype == np.float32 else -1074]:
        x = times(np.round(rng.uniform(-1, 1, SHAPE) * 64) / 64 + (power < -140), power, dtype)
        e = int(jax.jit(exponent)(x))
        assert e % 2 == 0
        scaled = np.asarray(jax.jit(to_unit)(x, e))
        assert 1 <= np.abs(scaled).max() < 4
        np.testing.assert_array_equal(np.ldexp(np.asarray(scaled, np.longdouble), e), x)
        np.testing.assert_array_equal(np.asarray(jax.jit(from_unit)(scaled, e)), x)


def test_units_of_what_has_none() -> None:
    for x in (np.zeros(3), np.array([np.nan, 1]), np.array([-np.inf, 1e-3]), np.array([0.0, -0.0])):
        e = exponent(jnp.asarray(x))
        assert e == 0
        np.testing.assert_array_equal(to_unit(jnp.asarray(x), e), np.asarray(x, np.float32))
    np.testing.assert_array_equal(exponent(jnp.array([[2.0**9, 1], [0, -3]]), axis=1), [[8], [0]])
    assert shift(jnp.float32(2.0**-100), jnp.int32(200)) == 2.0**100


def test_values_over_all_exponents(dtype: Any, problem: Problem) -> None:
    """Scaled by a power of two, a problem has the same factors, scaled by its root."""
    w, importance, metric = problem.w, problem.importance, problem.metric
    one = [x.astype(dtype) for x in (w, importance, metric)]
    key = jax.random.key(0)
    solvers: dict[str, Callable[..., LowRank]] = {
        "svd": lambda w, i, m: svd(w, RANK),
        "row": lambda w, i, m: weighted_svd(w, i, RANK, "row"),
        "column": lambda w, i, m: weighted_svd(w, i, RANK, "column"),
        "separable": lambda w, i, m: weighted_svd(w, i, RANK, "separable"),
        "matrix": lambda w, i, m: metric_svd(w, RANK, m, i[0]),
        "vector": lambda w, i, m: metric_svd(w, RANK, i[:, 0]),
        "randomized": lambda w, i, m: randomized_svd(w, RANK, key),
        "als": lambda w, i, m: weighted_als(w, i, RANK)[0],
        "balance": lambda w, i, m: balance(LowRank(w, jnp.asarray(one[0].T))),
    }
    for name, solve in solvers.items():
        expected = product(solve(*one), 0)
        for power in POWERS[dtype]:
            large = times(w, power, dtype)
            found = product(solve(large, *one[1:]), power)
            np.testing.assert_allclose(found, expected, atol=near(dtype), err_msg=f"{name} {power}")
            weights = [times(x, power, dtype) for x in (importance, metric)]
            found = product(solve(one[0], *weights), 0)
            np.testing.assert_allclose(found, expected, atol=near(dtype), err_msg=f"{name} {power}")


def test_truncation_at_the_ends_reaches_the_least_error(dtype: Any, problem: Problem) -> None:
    u, s, vt = np.linalg.svd(problem.w)
    best = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
    for power in POWERS[dtype]:
        w = times(problem.w, power, dtype)
        np.testing.assert_allclose(product(svd(w, RANK), power), best, atol=near(dtype))
        kronecker = nearest_kronecker(w, ((3, 2), (4, 5)), 6)
        blocks = LowRank(kronecker.a.reshape(6, 6).T, kronecker.b.reshape(6, 20))
        rows = problem.w.reshape(3, 4, 2, 5).transpose(0, 2, 1, 3).reshape(6, 20)
        np.testing.assert_allclose(product(blocks, power), rows, atol=near(dtype))
        *cores, last = tensor_train(w, ((3, 4), (2, 5)), 6).cores
        last = np.ldexp(np.asarray(last, np.float64), -power).astype(dtype)
        train = TensorTrain((*cores, jnp.asarray(last)))
        # Its last core is as large as W, and has as few digits below the normal numbers.
        tolerance = 0.01 if power <= np.finfo(dtype).minexp else near(dtype)
        np.testing.assert_allclose(train.dense(), problem.w, atol=tolerance)


@pytest.mark.slow
def test_gradients_over_all_exponents(dtype: Any, problem: Problem) -> None:
    """Of a product of degree 1 in W they are the same at any scale, in the weights they go as 1/s.

    Towards the ends the latter leave the dtype.
    """
    aim = problem.aim.astype(dtype)

    def inner(f: LowRank) -> jax.Array:
        return jnp.sum(aim * f.dense())

    w, i, m = (x.astype(dtype) for x in (problem.w, problem.importance, problem.metric))
    factors = w[:, :4], w[:4]
    solvers: dict[str, tuple[Callable[..., jax.Array], tuple[Any, ...]]] = {
        "svd": (lambda w: inner(svd(w, RANK)), (w,)),
        "weighted": (lambda w, i: inner(weighted_svd(w, i, RANK, "separable")), (w, i)),
        "metric": (lambda w, m: inner(metric_svd(w, RANK, m)), (w, m)),
        "balance": (lambda a, b: inner(balance(LowRank(a, b))), factors),
    }
    for name, (loss, arguments) in solvers.items():
        number = tuple(range(len(arguments)))
        gradient = jax.jit(jax.grad(loss, number))
        expected = [np.asarray(g, np.float64) for g in gradient(*arguments)]
        for power in POWERS[dtype]:
            large = times(arguments[0], power, dtype)
            found = gradient(large, *arguments[1:])[0]
            size = np.abs(expected[0]).max()
            rough = power in (-140, -1060)  # W itself is known to a few digits there
            tolerance = 0.3 * size if rough else 20 * near(dtype) * size
            np.testing.assert_allclose(
                found, expected[0], atol=tolerance, err_msg=f"{name} {power}"
            )
            if name in ("weighted", "metric") and abs(power) < 0.8 * np.finfo(dtype).maxexp:
                weight = times(arguments[1], power, dtype)
                found = np.ldexp(np.asarray(gradient(w, weight)[1], np.float64), power)
                size = np.abs(expected[1]).max()
                tolerance = 1000 * near(dtype) * size
                np.testing.assert_allclose(
                    found, expected[1], atol=tolerance, err_msg=f"{name} {power}"
                )


def test_weighted_als_over_all_exponents(dtype: Any, problem: Problem) -> None:
    """The descent is the same, ridge and start included, and so is what it reports."""
    w, i = (x.astype(dtype) for x in (problem.w, problem.importance))
    start = svd(w, RANK)
    for ridge in (0.0, 2.0**-6):
        f, info = weighted_als(w, i, RANK, ridge=ridge, init=start)
        expected = product(f, 0)
        for power in POWERS[dtype]:
            if ridge * 2.0**power in (0, np.inf) or not -100 < power < 100:
                continue  # a ridge in the unit of W must be a number itself
            half = power // 2
            a, b = times(start.a, half, dtype), times(start.b, power - half, dtype)
            init = LowRank(jnp.asarray(a), jnp.asarray(b))
            large, there = weighted_als(
                times(w, power, dtype), i, RANK, ridge=ridge * 2.0**power, init=init
            )
            assert (there.status, there.sweeps) == (info.status, info.sweeps)
            assert float(there.gradient_norm) == pytest.approx(float(info.gradient_norm), 1e-3)
            np.testing.assert_allclose(product(large, power), expected, atol=near(dtype))
            with np.errstate(over="ignore"):
                objective = np.ldexp(np.asarray(info.objective), 2 * power).astype(dtype)
            np.testing.assert_allclose(there.objective, objective, rtol=1e-3, atol=0)


def test_a_ridge_far_above_the_matrix_presses_it_to_zero(problem: Problem) -> None:
    w = times(problem.w, -120, np.float32)
    f, info = weighted_als(w, problem.importance, RANK, ridge=1.0)
    assert info.status == 0
    assert np.isfinite(info.objective).all()
    np.testing.assert_allclose(product(f, -120), 0, atol=1e-6)


def test_figures_of_spectra_over_all_exponents(dtype: Any, problem: Problem) -> None:
    s = np.linalg.svd(problem.w, compute_uv=False)
    p = s / s.sum()
    effective, stable = np.exp(-np.sum(p * np.log(p))), np.sum(s**2) / s[0] ** 2
    energy = 1 + int(np.sum(np.cumsum(s**2) < 0.9 * np.sum(s**2)))
    for power in POWERS[dtype]:
        if power in (127, 1023):
            continue  # the largest singular value is beyond the dtype
        found = singular_values(times(problem.w, power, dtype))
        rough = 0.05 if power in (-140, -1060) else near(dtype)
        np.testing.assert_allclose(np.ldexp(np.asarray(found, np.float64), -power), s, rough, rough)
        assert float(effective_rank(found)) == pytest.approx(effective, rough)
        assert float(stable_rank(found)) == pytest.approx(stable, rough)
        assert energy_rank(found) == energy
    # A stack has a unit for each.
    both = np.stack([times(s, power, dtype) for power in (-100, 100)])
    np.testing.assert_array_equal(energy_rank(both), [energy, energy])


@pytest.mark.slow
def test_weighted_error_over_all_exponents(dtype: Any, problem: Problem) -> None:
    w, i = problem.w, problem.importance
    a, b = w[:, :4], w[:4]
    expected = np.sum(i * (w - a @ b) ** 2)
    end = np.finfo(dtype).maxexp
    for power in POWERS[dtype]:
        # As small an importance as the matrix is large, so that the result is a number.
        of_importance = int(np.clip(-2 * power, 8 - end, end - 8))
        half = power // 2
        factors = LowRank(
            *(jnp.asarray(times(x, p, dtype)) for x, p in ((a, half), (b, power - half)))
        )
        found = weighted_error(times(w, power, dtype), times(i, of_importance, dtype), factors)
        total = expected * 2.0 ** (2 * power + of_importance) if abs(power) < end // 2 else None
        if total is not None:
            assert float(found) == pytest.approx(total, rel=1e-5)
        else:
            assert not np.isnan(found)


def test_second_derivatives_where_the_dtype_holds_them(dtype: Any, problem: Problem) -> None:
    """They go as 1/s; those of the factors, of which they are made, as s^-3/2."""
    aim, way = problem.aim.astype(dtype), problem.aim[::-1].astype(dtype)

    @jax.jit
    def curve(w: jax.Array) -> jax.Array:
        slope = jax.grad(lambda w: jnp.sum(aim * svd(w, RANK).dense()))
        return jax.jvp(slope, (w,), (way,))[1]

    expected = np.asarray(curve(problem.w.astype(dtype)), np.float64)
    for power in (-75, -40, 40, 75) if dtype == np.float32 else (-600, 600):
        found = np.asarray(curve(times(problem.w, power, dtype)), np.float64)
        tolerance = 20 * near(dtype) * np.abs(expected).max()
        np.testing.assert_allclose(np.ldexp(found, power), expected, atol=tolerance)


@pytest.mark.parametrize("power", [127, -140])
def test_sums_of_importance_may_leave_float32(power: int, problem: Problem) -> None:
    importance = times(problem.importance, power, np.float32)
    with np.errstate(over="ignore"):
        assert power < 0 or np.isinf(importance.sum(axis=1, dtype=np.float32)).any()
    weight = np.sqrt(problem.importance.sum(axis=1))[:, None]
    u, s, vt = np.linalg.svd(weight * problem.w)
    best = (u[:, :RANK] * s[:RANK]) @ vt[:RANK] / weight
    found = weighted_svd(problem.w.astype(np.float32), importance, RANK, "row")
    np.testing.assert_allclose(found.dense(), best, atol=1e-5)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("power", [-140, -126, 0])
def test_float32_beside_float64(power: int, problem: Problem) -> None:
    """Widened with all its digits, and differentiable."""
    w, expected = (
        times(problem.w, power, np.float32),
        weighted_svd(problem.w, problem.importance, 3),
    )
    f = weighted_svd(jnp.asarray(w), jnp.asarray(problem.importance), 3)
    assert f.a.dtype == jnp.float64
    np.testing.assert_allclose(product(f, power), expected.dense(), atol=1e-12)
    slope = jax.grad(lambda w: jnp.sum(weighted_svd(w, problem.importance, 3).dense()))
    assert slope(jnp.asarray(w)).dtype == jnp.float32
    np.testing.assert_allclose(slope(jnp.asarray(w)), slope(jnp.asarray(problem.w)), atol=1e-5)
