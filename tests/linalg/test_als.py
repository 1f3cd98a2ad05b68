from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from lpaf_jax.linalg import AlsInfo, LowRank, Status, als, weighted_als, weighted_svd

# One shape and rank for most tests, so that they share what is compiled.
SHAPE, RANK = (24, 16), 3
SCALES = (2.0**-110, 1.0, 2.0**110)  # near the ends of float32


def problem(seed: int, spread: float = 1.5, shape: tuple[int, int] = SHAPE) -> tuple[Any, Any]:
    """A full-rank matrix and log-normal importance of mean 1."""
    rng = np.random.default_rng(seed)
    importance = np.exp(spread * rng.normal(size=shape))
    return rng.normal(size=shape), importance / importance.mean()


def objective(w: Any, importance: Any, f: LowRank, ridge: float = 0.0) -> float:
    """In float64, whatever the factors are in."""
    a, b = (np.asarray(x, np.float64) for x in f)
    weight = np.asarray(importance, np.float64) / np.mean(importance)
    error = np.sum(weight * (w - a @ b) ** 2)
    return float(error + ridge * (np.sum(a**2) + np.sum(b**2)))


def check_descent(w: Any, importance: Any, f: LowRank, info: AlsInfo, ridge: float = 0.0) -> None:
    """What holds for every solve, on whatever problem."""
    trace = np.asarray(info.objective)
    assert np.isfinite(trace).all()
    assert (np.diff(trace) <= 0).all()
    assert (trace[info.sweeps :] == trace[-1]).all()
    assert info.status in (Status.CONVERGED, Status.MAX_SWEEPS)
    assert np.isfinite(info.gradient_norm)
    # The trace may not drift from the objective of the factors that are handed back.
    scale = objective(w, importance, LowRank(0 * f.a, 0 * f.b))
    assert objective(w, importance, f, ridge) == pytest.approx(trace[-1], 1e-4, 1e-6 * scale)


def solve_rows(w: Any, importance: Any, b: Any) -> Any:
    """Each row by itself, by the least-squares routine of numpy."""
    roots = np.sqrt(importance)
    rows = [np.linalg.lstsq((b * r).T, r * x, rcond=None)[0] for x, r in zip(w, roots, strict=True)]
    return np.stack(rows)


@pytest.mark.usefixtures("double")
def test_one_sweep_at_rank_two_solves_every_row_and_then_every_column() -> None:
    """Two steps of conjugate gradients are exact for two unknowns."""
    w, importance = problem(0, shape=(6, 11))
    start = LowRank(w[:, :2], w[:2])
    f, info = weighted_als(w, importance, 2, init=start, max_sweeps=1, tol=0.0)
    a = solve_rows(w, importance, np.asarray(start.b))
    b = solve_rows(w.T, importance.T, a.T).T
    np.testing.assert_allclose(f.dense(), a @ b, atol=1e-8)
    assert (info.sweeps, info.status) == (1, Status.MAX_SWEEPS)
    np.testing.assert_allclose(info.objective[0], objective(w, importance, start))
    np.testing.assert_allclose(info.objective[1], objective(w, importance, LowRank(a, b)))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_ends_at_a_stationary_point_as_low_as_that_of_lbfgs(ridge: float) -> None:
    w, importance = problem(1)
    f, info = weighted_als(w, 5 * importance, RANK, ridge=ridge, tol=1e-9)
    a, b = np.asarray(f.a), np.asarray(f.b)
    check_descent(w, importance, f, info, ridge)
    assert info.status == Status.CONVERGED

    weighted = importance * (w - a @ b)
    for gradient, size in (
        (weighted @ b.T - ridge * a, np.abs(weighted) @ np.abs(b.T)),
        (a.T @ weighted - ridge * b, np.abs(a.T) @ np.abs(weighted)),
    ):
        assert np.linalg.norm(gradient) < 1e-3 * np.linalg.norm(size)
    again = LowRank(solve_rows(w, importance, b), b)
    if ridge == 0:
        assert objective(w, importance, again) > (1 - 1e-6) * objective(w, importance, f)

    def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = np.split(x, [SHAPE[0] * RANK])
        g = LowRank(a.reshape(SHAPE[0], RANK), b.reshape(RANK, SHAPE[1]))
        weighted = importance * (w - g.a @ g.b)
        slopes = ridge * g.a - weighted @ g.b.T, ridge * g.b - g.a.T @ weighted
        flat = np.concatenate([2 * x.ravel() for x in slopes])
        return objective(w, importance, g, ridge), flat

    start = np.concatenate([np.ravel(x) for x in weighted_svd(w, importance, RANK, "separable")])
    found = minimize(value_and_slope, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    assert info.objective[-1] < 1.001 * found.fun


@pytest.mark.usefixtures("double")
def test_gradient_norm_is_the_share_that_single_entries_would_remove() -> None:
    w, importance = problem(2)
    f, info = weighted_als(w, importance, RANK, tol=1e-3)
    here, total = objective(w, importance, f), 0.0
    for factor in range(2):
        for index in np.ndindex(f[factor].shape):

            def along(t: float, factor: int = factor, index: Any = index) -> float:
                moved = [np.array(x) for x in f]
                moved[factor][index] += t
                return objective(w, importance, LowRank(*moved))

            # Along one entry the objective is a parabola: three points give its least value.
            up, down = along(1.0), along(-1.0)
            total += (up - down) ** 2 / (8 * (up + down - 2 * here))
    np.testing.assert_allclose(info.gradient_norm**2, total / here, rtol=1e-5)


@pytest.mark.usefixtures("double")
def test_uniform_importance_with_ridge_soft_thresholds_the_singular_values() -> None:
    w, _ = problem(3)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    ridge = float(s[1:3].mean())  # the third is pressed to zero
    shrunk = np.maximum(s - ridge, 0) * (np.arange(len(s)) < RANK)
    f, info = weighted_als(w, np.full(SHAPE, 7.0), RANK, ridge=ridge, tol=1e-9)
    least = np.sum((s - shrunk) ** 2) + 2 * ridge * shrunk.sum()
    np.testing.assert_allclose(info.objective[-1], least, rtol=1e-7)
    np.testing.assert_allclose(f.dense(), (u * shrunk) @ vt, atol=1e-3)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_recovers_a_planted_matrix_under_any_positive_importance(spread: float) -> None:
    rng = np.random.default_rng(4)
    w = rng.normal(size=(SHAPE[0], RANK)) @ rng.normal(size=(RANK, SHAPE[1]))
    _, importance = problem(4, spread)
    start = LowRank(rng.normal(size=(SHAPE[0], RANK)), rng.normal(size=(RANK, SHAPE[1])))
    f, info = weighted_als(w, importance, RANK, init=start, tol=1e-6)
    check_descent(w, importance, f, info)
    assert np.linalg.norm(w - np.asarray(f.dense())) < 1e-3 * np.linalg.norm(w)


@pytest.mark.usefixtures("double")
def test_row_shared_importance_leads_to_the_closed_form_from_anywhere() -> None:
    w, importance = problem(5)
    importance = np.broadcast_to(importance[:, :1], SHAPE)
    best = objective(w, importance, weighted_svd(w, importance, RANK, "row"))
    rng = np.random.default_rng(5)
    start = LowRank(rng.normal(size=(SHAPE[0], RANK)), rng.normal(size=(RANK, SHAPE[1])))
    far, info = weighted_als(w, importance, RANK, init=start, tol=1e-9)
    np.testing.assert_allclose(objective(w, importance, far), best, rtol=1e-5)
    near, info = weighted_als(w, importance, RANK, tol=1e-9)
    np.testing.assert_allclose(objective(w, importance, near), best, rtol=1e-9)
    assert (info.sweeps, info.status) == (1, Status.CONVERGED)


@pytest.mark.usefixtures("double")
def test_importance_over_twelve_orders_of_magnitude() -> None:
    w, _ = problem(6)
    exponents = np.random.default_rng(6).uniform(-12, 0, size=SHAPE)
    f, info = weighted_als(w, 10**exponents, RANK, tol=1e-6)
    check_descent(w, 10**exponents, f, info)
    assert info.objective[-1] < 0.5 * info.objective[0]


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0, 6),
    zeros=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    ridge=st.sampled_from([0.0, 1e-4, 1.0, 100.0]),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    structure=st.sampled_from(["free", "empty rows", "empty columns", "low rank", "one row"]),
)
def test_never_rises_whatever_the_problem(
    seed: int, spread: float, zeros: float, ridge: float, scale: float, structure: str
) -> None:
    w, importance = problem(seed, spread)
    rng = np.random.default_rng(seed)
    importance = scale * importance * (rng.uniform(size=SHAPE) >= zeros)
    if structure == "empty rows":
        importance[::3] = 0
    if structure == "empty columns":
        importance[:, :5] = 0
    if structure == "one row":
        importance[1:] = 0
    if structure == "low rank":
        w = np.outer(w[:, 0], w[0])
    importance[0, 0] = scale
    with jax.numpy_dtype_promotion("strict"):
        f, info = weighted_als(w, importance, RANK, ridge=ridge)
    assert f.a.dtype == jnp.float32
    check_descent(w, importance, f, info, ridge)


def test_sparse_importance_with_a_ridge() -> None:
    w, importance = problem(7)
    kept = np.random.default_rng(7).uniform(size=SHAPE) < 0.1
    f, info = weighted_als(w, importance * kept, RANK, ridge=1e-3)
    assert info.objective[-1] < 0.5 * info.objective[0]
    # A ridge is what keeps entries of no importance from running away.
    assert np.abs(f.dense()).max() < 30 * np.abs(w).max()


def test_rows_without_importance_shrink_under_a_ridge_and_stay_without_one() -> None:
    w, importance = problem(8)
    importance[5] = 0
    start = weighted_svd(w, importance, RANK, "separable")
    free, _ = weighted_als(w, importance, RANK)
    held, _ = weighted_als(w, importance, RANK, ridge=1.0)
    assert np.isfinite(free.a[5]).all()
    assert np.abs(start.dense()[5]).max() > 1e-2
    np.testing.assert_allclose(held.dense()[5], 0, atol=1e-6)


def test_the_scale_of_importance_is_irrelevant_to_ridge_and_result() -> None:
    w, importance = problem(9)
    w = 0.05 * w  # as weights are: small times small leaves float32 first
    results = [weighted_als(w, importance * c, RANK, ridge=1.0) for c in SCALES]
    for f, info in results:
        np.testing.assert_allclose(f.dense(), results[1][0].dense(), atol=1e-6)
        np.testing.assert_allclose(info.objective, results[1][1].objective, rtol=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_factors_are_balanced(ridge: float) -> None:
    w, importance = problem(10)
    f, _ = weighted_als(w, importance, RANK, ridge=ridge)
    a, b = np.asarray(f.a), np.asarray(f.b)
    np.testing.assert_allclose(a.T @ a, b @ b.T, atol=1e-4 * np.linalg.norm(w))


def test_full_rank_is_the_matrix_itself() -> None:
    w, importance = problem(11, shape=(8, 5))
    f, info = weighted_als(w, importance, 5)
    np.testing.assert_allclose(f.dense(), w, atol=1e-4)
    assert info.status == Status.CONVERGED


def test_small_ranks_start_without_a_full_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    w, importance = problem(18, shape=(60, 50))
    closed = objective(w, importance, weighted_svd(w, importance, RANK, "separable"))
    monkeypatch.setattr(als, "svd", None)
    f, info = weighted_als(w, importance, RANK, tol=1e-6)
    check_descent(w, importance, f, info)
    assert info.objective[0] < 1.05 * closed
    assert info.objective[-1] < 0.9 * closed
    with pytest.raises(TypeError):  # at larger ranks it is the full one
        weighted_als(w, importance, 10)


@pytest.mark.usefixtures("double")
def test_goes_on_from_an_earlier_solution() -> None:
    w, importance = problem(12)
    first, rough = weighted_als(w, importance, RANK, tol=1e-2)
    _, fine = weighted_als(w, importance, RANK, init=first, tol=1e-6)
    np.testing.assert_allclose(fine.objective[0], rough.objective[-1], rtol=1e-9)
    assert fine.objective[-1] < rough.objective[-1]
    half = LowRank(*(jnp.asarray(x, jnp.bfloat16) for x in first))
    f, from_half = weighted_als(w, importance, RANK, init=half, tol=1e-6)
    assert f.a.dtype == jnp.float64
    np.testing.assert_allclose(from_half.objective[-1], fine.objective[-1], rtol=1e-2)


def test_stacked_problems_stop_each_by_itself() -> None:
    problems = [problem(13, 0.1), problem(14, 2.0), problem(15, 2.0)]
    w, importance = (np.stack(x).astype(np.float32) for x in zip(*problems, strict=True))
    solve = partial(weighted_als, rank=RANK, ridge=1e-3)
    f, info = jax.jit(jax.vmap(lambda w, i: solve(w, i)))(w, importance)
    assert len(set(info.sweeps.tolist())) == 3
    for j in range(3):
        g, alone = solve(w[j], importance[j])
        assert abs(info.sweeps[j] - alone.sweeps) <= 2  # rounding may move the end a little
        np.testing.assert_allclose(info.objective[j, -1], alone.objective[-1], rtol=1e-3)
        np.testing.assert_allclose(f.dense()[j], g.dense(), atol=0.05)


def test_an_objective_beyond_float32_does_not_stop_the_solve() -> None:
    w, importance = problem(16)
    large, info = weighted_als(1e15 * w, importance, RANK)
    check_descent(1e15 * w, importance, large, info)
    larger, there = weighted_als(1e25 * w, importance, RANK)
    assert (there.status, there.sweeps) == (info.status, info.sweeps)
    assert np.isinf(there.objective).all()
    relative = objective(1e25 * w, importance, larger) / 1e20
    assert relative == pytest.approx(objective(1e15 * w, importance, large), rel=1e-4)


def test_overflow_is_a_status_and_not_a_silent_nan() -> None:
    w, importance = problem(16)
    start = LowRank(1e15 * w[:, :RANK], 1e15 * w[:RANK])  # of a matrix 1e30 times as large
    f, info = weighted_als(w, importance, RANK, init=start)
    assert info.status == Status.FAILED
    assert np.isfinite(f.a).all()


def test_a_sweep_that_breaks_down_is_undone_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> tuple[LowRank, jax.Array, jax.Array]:
        nan = jnp.asarray(jnp.nan, jnp.float32)
        return LowRank(jnp.full((7, 2), nan), jnp.full((2, 6), nan)), nan, nan

    monkeypatch.setattr(als, "_sweep", broken)
    w, importance = problem(17, shape=(7, 6))
    start = LowRank(jnp.asarray(w[:, :2], jnp.float32), jnp.asarray(w[:2], jnp.float32))
    f, info = weighted_als(w, importance, 2, init=start)
    assert (info.sweeps, info.status) == (1, Status.FAILED)
    np.testing.assert_allclose(f.dense(), start.dense(), atol=1e-5)


def test_a_shape_and_rank_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []
    sweep = als._sweep

    def counting(*args: Any) -> Any:
        traced.append(args)
        return sweep(*args)

    monkeypatch.setattr(als, "_sweep", counting)
    for seed, values in enumerate([{"ridge": 0.5}, {"ridge": 0}, {"tol": 1}, {"tol": 1e-3}]):
        weighted_als(*problem(seed, shape=(7, 6)), 2, **values)  # type: ignore[arg-type]
        assert len(traced) == 1


def test_products_are_in_full_precision() -> None:
    """Elsewhere than on a CPU the default rounds the inputs of a product to 10 or 7 bits."""
    w = jnp.ones((7, 6))
    text = str(jax.make_jaxpr(lambda w: weighted_als(w, w, 2))(w))
    products = text.split("dot_general[")[1:]
    assert len(products) > 9
    assert all("precision=(Precision.HIGHEST, Precision.HIGHEST)" in x[:200] for x in products)


def test_a_status_has_a_word_and_stays_a_small_integer() -> None:
    w, importance = np.eye(4, dtype=np.float32), np.ones((4, 4), np.float32)
    for bad, status in [(1.0, Status.CONVERGED), (np.nan, Status.FAILED)]:
        _, info = jax.jit(lambda w: weighted_als(w, importance, 2))(bad * w)
        assert info.status.dtype == np.int32
        assert Status(int(info.status)) is status
    assert Status.CONVERGED.words == "converged"
    assert all(status.words for status in Status)
