from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm

from lpaf_jax.linalg import metric_svd, svd, weighted_svd
from lpaf_jax.linalg.svd import Sharing

# One shape and rank for most tests, so that they share what is compiled.
SHAPE, RANK = (12, 10), 3
EYE = np.eye(SHAPE[0])


def tail(w: np.ndarray, rank: int) -> float:
    """The least squared error of any rank-k approximation (Eckart & Young)."""
    return float(np.sum(np.linalg.svd(w, compute_uv=False)[rank:] ** 2))


def moments(x: np.ndarray) -> np.ndarray:
    return x.T @ x / len(x)


def features(rng: np.random.Generator, size: int) -> np.ndarray:
    """Correlated, and of unequal strength."""
    return rng.normal(size=(40, size)) @ (rng.normal(size=(size, size)) * np.logspace(0, -1, size))


def error(w: np.ndarray, f: Any, left: np.ndarray, right: np.ndarray) -> float:
    """`‖L^{1/2} (W − AB) R^{1/2}‖²` in float64, without a root."""
    rest = w - np.asarray(f.a, np.float64) @ np.asarray(f.b, np.float64)
    return float(np.sum((left @ rest) * (rest @ right)))


def make(kind: str, rng: np.random.Generator, size: int) -> tuple[Any, np.ndarray]:
    """A metric as it is passed, and as a matrix."""
    if kind == "none":
        return None, np.eye(size)
    if kind == "vector":
        weights = np.exp(rng.normal(size=size))
        return weights, np.diag(weights)
    metric = moments(features(rng, size))
    return metric, metric


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("kinds", "shape"),
    [
        (("none", "none"), SHAPE),
        (("vector", "none"), SHAPE),
        (("none", "vector"), SHAPE),
        (("matrix", "none"), SHAPE),
        (("none", "matrix"), SHAPE),
        (("matrix", "vector"), SHAPE),
        (("matrix", "matrix"), SHAPE),
        (("matrix", "matrix"), SHAPE[::-1]),
    ],
)
def test_closed_form_reaches_the_least_error(
    kinds: tuple[str, str], shape: tuple[int, int], rng: np.random.Generator
) -> None:
    """A metric in place of its root, on the wrong side or left in the factors would miss it."""
    w = rng.normal(size=shape)
    (left, l_matrix), (right, r_matrix) = (
        make(kind, rng, size) for kind, size in zip(kinds, shape, strict=True)
    )
    f = metric_svd(w, RANK, left, right)
    least = tail(sqrtm(l_matrix) @ w @ sqrtm(r_matrix), RANK)
    np.testing.assert_allclose(error(w, f, l_matrix, r_matrix), least, rtol=1e-9)
    np.testing.assert_allclose(f.a.T @ f.a, f.b @ f.b.T, atol=1e-9)


@pytest.mark.usefixtures("double")
def test_input_metric_gives_the_least_error_of_the_outputs(rng: np.random.Generator) -> None:
    w, x = rng.normal(size=SHAPE), features(rng, SHAPE[0])
    f = metric_svd(w, RANK, left=moments(x))
    outputs = np.sum((x @ w - np.asarray(f.apply(jnp.asarray(x)))) ** 2)
    # No matrix of rank k comes closer to the outputs than this, whatever it is made of.
    np.testing.assert_allclose(outputs, tail(x @ w, RANK), rtol=1e-9)
    assert outputs < 0.9 * np.sum((x @ (w - np.asarray(svd(w, RANK).dense()))) ** 2)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("sharing", ["row", "column", "separable"])
@pytest.mark.parametrize("as_matrix", [False, True])
def test_diagonal_metrics_agree_with_weighted_svd(
    sharing: Sharing, as_matrix: bool, rng: np.random.Generator
) -> None:
    w, importance = rng.normal(size=SHAPE), np.exp(rng.normal(size=SHAPE))
    importance[3], importance[:, 7] = 0, 0
    rows, columns = importance.sum(axis=1), importance.sum(axis=0)
    left, right = (np.diag(rows), np.diag(columns)) if as_matrix else (rows, columns)
    f = metric_svd(
        w,
        RANK,
        None if sharing == "column" else left,
        None if sharing == "row" else right,
    )
    expected = weighted_svd(w, importance, RANK, sharing)
    np.testing.assert_allclose(f.dense(), expected.dense(), atol=1e-6)


@pytest.mark.parametrize("strength", [1.0, 1e-3])
def test_float32_agrees_with_the_least_error(strength: float, rng: np.random.Generator) -> None:
    """Also with features a thousand times weaker than the others, in another basis."""
    w, x, g = rng.normal(size=SHAPE), features(rng, SHAPE[0]), features(rng, SHAPE[1])
    x = (x * np.where(np.arange(SHAPE[0]) < 6, 1, strength)) @ np.linalg.qr(x.T @ x)[0]
    left, right = moments(x), moments(g)
    f = metric_svd(w, RANK, left, right)
    assert f.a.dtype == f.b.dtype == jnp.float32
    least = tail(sqrtm(left) @ w @ sqrtm(right), RANK)
    np.testing.assert_allclose(error(w, f, left, right), least, rtol=1e-4)


@pytest.mark.parametrize("below_zero", [0.0, 1e-6])
@pytest.mark.parametrize("given", [jnp.float32, jnp.bfloat16])
def test_singular_metric(below_zero: float, given: Any, rng: np.random.Generator) -> None:
    """Inputs in a subspace of 5 dimensions: 7 eigenvalues are rounding, or worse, negative."""
    w, x = rng.normal(size=SHAPE), features(rng, SHAPE[0])
    span = np.linalg.qr(rng.normal(size=(SHAPE[0], 5)))[0]
    x = x @ span @ span.T
    metric = moments(x)
    metric -= below_zero * np.linalg.norm(metric, 2) * (EYE - span @ span.T)
    f = metric_svd(w, RANK, jnp.asarray(metric).astype(given))
    assert np.isfinite(f.a).all()
    assert np.isfinite(f.b).all()
    # Nothing fits the null space, and still the fit must stay in the range of the matrix.
    assert np.abs(f.dense()).max() < 10 * np.abs(w).max()
    rtol = 5e-2 if given == jnp.bfloat16 else 1e-4
    np.testing.assert_allclose(
        error(w, f, moments(x), np.eye(10)), tail(x @ w / 40**0.5, RANK), rtol
    )


def test_rank_left_over_goes_to_the_null_space(rng: np.random.Generator) -> None:
    w, q = rng.normal(size=SHAPE), rng.normal(size=SHAPE[0])
    q /= np.linalg.norm(q)
    f = metric_svd(w, RANK, np.outer(q, q))
    # The one direction that counts takes one dimension; the others are the best for what is left.
    row = (q @ w)[None]
    rest = (EYE - np.outer(q, q)) @ w @ (np.eye(SHAPE[1]) - np.linalg.pinv(row) @ row)
    np.testing.assert_allclose(q @ np.asarray(f.dense()), row[0], atol=1e-3)
    np.testing.assert_allclose(error(w, f, EYE, np.eye(SHAPE[1])), tail(rest, RANK - 1), rtol=1e-2)


def test_metrics_that_are_the_identity(rng: np.random.Generator) -> None:
    w, metric = rng.normal(size=SHAPE), moments(features(rng, SHAPE[0]))
    plain = svd(w, RANK).dense()
    for left in (0 * EYE, 0 * EYE[0], 7 * EYE, np.arange(12) > -1, np.eye(12, dtype=int)):
        np.testing.assert_allclose(metric_svd(w, RANK, left).dense(), plain, atol=1e-5)
    np.testing.assert_allclose(metric_svd(w, RANK, metric, floor=1).dense(), plain, atol=1e-5)


def test_the_scale_of_a_metric_is_irrelevant(rng: np.random.Generator) -> None:
    w, left, right = rng.normal(size=SHAPE), *(moments(features(rng, n)) for n in SHAPE)
    one, *others = (
        np.asarray(metric_svd(w, RANK, c * left, right / c).dense()) for c in (1, 1e-18, 1e18)
    )
    for other in others:
        np.testing.assert_allclose(other, one, atol=1e-3)


@pytest.mark.usefixtures("double")
def test_only_the_symmetric_part_counts(rng: np.random.Generator) -> None:
    w, left = rng.normal(size=SHAPE), moments(features(rng, SHAPE[0]))
    skew = np.triu(np.full((12, 12), 1e-3 * left.max()), 1)
    bent = metric_svd(w, RANK, left + skew - skew.T).dense()
    np.testing.assert_allclose(bent, metric_svd(w, RANK, left).dense(), atol=1e-9)


def test_half_precision_is_solved_in_float32_and_floored_in_its_own(
    rng: np.random.Generator,
) -> None:
    left, right = (jnp.asarray(moments(features(rng, n)), jnp.bfloat16) for n in SHAPE)
    w = jnp.asarray(rng.normal(size=SHAPE), jnp.bfloat16)
    f = metric_svd(w, RANK, left, right)
    assert f.a.dtype == f.b.dtype == jnp.float32
    single = [x.astype(jnp.float32) for x in (left, right)]
    same = metric_svd(w, RANK, *single, floor=2**-7)
    np.testing.assert_allclose(f.dense(), same.dense(), atol=1e-5)
    # The floor is below what these metrics hold, or nothing would have been tested.
    assert np.abs(f.dense() - metric_svd(w, RANK, *single).dense()).max() > 1e-3


def test_vmap_equals_loop(rng: np.random.Generator) -> None:
    w = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    left = np.stack([moments(features(rng, SHAPE[0])) for _ in w]).astype(np.float32)
    right = np.exp(rng.normal(size=(3, SHAPE[1]))).astype(np.float32)

    def solve(w: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
        return metric_svd(w, RANK, left, right).dense()

    loop = [np.asarray(solve(*each)) for each in zip(w, left, right, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(solve))(w, left, right), loop, atol=1e-4)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("left", ["matrix", "identity", "floored"])
def test_gradient_through_the_product(left: str, rng: np.random.Generator) -> None:
    """With eigenvalues apart, all equal, and with half of them below the floor."""
    shape = (7, 5)
    w, target = (jnp.asarray(rng.normal(size=shape)) for _ in range(2))
    metrics = [jnp.asarray(moments(features(rng, n))) for n in shape]
    ways = [jnp.asarray(rng.normal(size=s)) for s in (shape, (7, 7), (5, 5))]
    floor = None
    if left == "identity":
        metrics[0] = jnp.eye(7)
    if left == "floored":
        q = np.linalg.qr(metrics[0])[0]
        metrics = [jnp.asarray((q * [9, 6, 4, 0.3, 0.3, 0.2, 0]) @ q.T), jnp.eye(5)]
        # The level of the floor, a share of the largest eigenvalue, is held.
        across = np.eye(7) - np.outer(q[:, 0], q[:, 0])
        ways[1], ways[2], floor = across @ ways[1] @ across, 0 * ways[2], 0.1

    @jax.jit
    def loss(w: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.sum(target * jnp.sin(metric_svd(w, 2, left, right, floor=floor).dense()))

    def moved(step: float) -> jax.Array:
        return loss(*(x + step * way for x, way in zip((w, *metrics), ways, strict=True)))

    difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(w, *metrics)
    slope = sum(jnp.sum(g * way) for g, way in zip(gradients, ways, strict=True))
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["matrix", "identity", "floored", "vector"])
def test_second_derivatives_in_the_metric(kind: str, rng: np.random.Generator) -> None:
    """Against differences of the gradient; the largest eigenvalue, of which the floor is a share,
    is held."""
    w, target = (jnp.asarray(rng.normal(size=SHAPE)) for _ in range(2))
    q = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    s = {"floored": np.r_[9, 6, 5, 4, 3, 2, 0.3, 0.3, 0.2, 0.1, 0.1, 0]}.get(kind, np.arange(1, 13))
    metric = jnp.eye(12) if kind == "identity" else jnp.asarray((q * s) @ q.T)
    across = np.eye(12) - np.outer(q[:, 0], q[:, 0])
    way = jnp.asarray(across @ (lambda x: x + x.T)(rng.normal(size=(12, 12))) @ across)
    if kind == "vector":
        metric, way = jnp.diagonal(metric), jnp.diagonal(way)
    floor = 0.1 if kind == "floored" else None

    def loss(left: jax.Array) -> jax.Array:
        return jnp.sum(target * jnp.sin(metric_svd(w, RANK, left, floor=floor).dense()))

    gradient = jax.jit(jax.grad(loss))
    difference = (gradient(metric + 1e-6 * way) - gradient(metric - 1e-6 * way)) / 2e-6
    found = jax.jit(lambda x: jax.jvp(gradient, (x,), (way,))[1])(metric)
    np.testing.assert_allclose(found, difference, rtol=1e-4, atol=1e-6)
    backward = jax.jit(jax.grad(lambda x: jnp.sum(gradient(x) * way)))(metric)
    np.testing.assert_allclose(backward, difference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("left", [np.zeros((12, 12)), np.ones((12, 12)), EYE])
def test_gradient_is_finite_where_none_exists(left: np.ndarray) -> None:
    w = jnp.asarray(np.ones(SHAPE), jnp.float32)
    gradient = jax.jit(jax.grad(lambda left: jnp.sum(metric_svd(w, RANK, left).dense() ** 3)))
    assert np.isfinite(gradient(left.astype(np.float32))).all()


def massive(rng: np.random.Generator, size: float) -> np.ndarray:
    """Inputs with a falling spectrum; every 64th row is all in one of two channels."""
    m = 48
    x = rng.normal(size=(1024, m)) @ (rng.normal(size=(m, m)) * np.logspace(0, -2.5, m)) / 20
    x[::64] = 0.01 * rng.normal(size=(16, m))
    x[::128, 5] += size
    x[64::128, 30] += size
    return x


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e4, 1e5])
def test_massive_channels_leave_the_others_as_they_are(
    size: float, side: str, rng: np.random.Generator
) -> None:
    """What a rank loses of the usual rows is what it loses in float64."""
    x, w, rank = massive(rng, size), rng.normal(size=(48, 40)), 14
    single = jnp.asarray(x, jnp.float32)
    moment = single.T @ single / len(x)
    if side == "left":
        f = metric_svd(w, rank, left=moment)
        product = np.asarray(f.a, np.float64) @ np.asarray(f.b, np.float64)
    else:
        f = metric_svd(w.T, rank, right=moment)
        product = (np.asarray(f.a, np.float64) @ np.asarray(f.b, np.float64)).T
    # In float64, from the inputs themselves and no moment.
    _, s, vt = np.linalg.svd(x, full_matrices=False)
    u, kept, right = np.linalg.svd((s[:, None] * vt) @ w, full_matrices=False)
    best = (vt.T / s) @ (u[:, :rank] * kept[:rank]) @ right[:rank]
    usual = np.delete(x, np.arange(0, 1024, 64), axis=0)
    lost, least = (np.sum((usual @ (w - p)) ** 2) for p in (product, best))
    assert lost < 1.02 * least
    assert lost < 0.1 * np.sum((usual @ (w - np.asarray(svd(w, rank).dense()))) ** 2)


def test_massive_weights_of_a_vector_leave_the_others_as_they_are(
    rng: np.random.Generator,
) -> None:
    w, weights = rng.normal(size=(48, 40)), np.exp(2 * rng.normal(size=48))
    weights[[5, 30]] *= 1e10
    root = np.sqrt(weights)[:, None]
    u, s, vt = np.linalg.svd(root * w, full_matrices=False)
    best = (u[:, :14] * s[:14]) @ vt[:14] / root
    usual = np.delete(np.arange(48), [5, 30])
    lost, least = (
        np.sum((root * (w - p))[usual] ** 2) for p in (metric_svd(w, 14, weights).dense(), best)
    )
    assert lost < 1.02 * least


def test_a_floor_that_is_given_is_a_share_of_the_largest(rng: np.random.Generator) -> None:
    """Massive channels too: at 1 the metric is the identity."""
    w, x = rng.normal(size=(48, 40)), massive(rng, 1e4)
    f = metric_svd(w, 14, moments(x), floor=1)
    np.testing.assert_allclose(f.dense(), svd(w, 14).dense(), atol=1e-4)


def test_dead_channels_beside_massive_ones(rng: np.random.Generator) -> None:
    """Nothing fits dead channels, and still they must stay in the range of the matrix."""
    w, x = rng.normal(size=(48, 40)), massive(rng, 1e4)
    x[:, 36:] = 0
    f = metric_svd(w, 14, moments(x))
    assert np.abs(f.dense()).max() < 10 * np.abs(w).max()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            {"left": np.eye(10)},
            r"left has shape \(10, 10\) but must be \(12, 12\) or, diagonal, \(12,\)",
        ),
        ({"right": np.eye(12)}, r"right has shape \(12, 12\) but must be \(10, 10\)"),
        ({"left": np.ones(10)}, "left has shape"),
        ({"left": np.ones(SHAPE)}, "left has shape"),
        ({"right": 1.0}, "right has shape"),
        ({"left": np.where(EYE > 0, np.nan, 0)}, "left has NaN"),
        ({"right": np.full(10, np.inf)}, "right has NaN or infinite"),
        ({"left": np.triu(np.ones((12, 12)))}, "left is not symmetric"),
        ({"left": np.arange(12.0) - 1e-9}, "left has negative entries"),
        ({"right": -np.eye(10)}, "right has negative diagonal"),
        ({"floor": 0.0}, "floor must lie in"),
        ({"floor": 1.5}, "floor must lie in"),
        ({"floor": np.nan}, "floor must lie in"),
        ({"floor": np.ones(2)}, "floor must be one number"),
        ({"rank": 0}, "rank must lie between 1 and 10"),
        ({"w": np.full(SHAPE, np.nan)}, "w has NaN"),
        ({"w": np.ones(12)}, "non-empty matrix"),
    ],
)
def test_errors(metrics: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric_svd(**({"w": np.ones(SHAPE), "rank": RANK} | metrics))


def test_factors_in_order_hold_the_best_of_every_rank(rng: np.random.Generator) -> None:
    w = rng.normal(size=(12, 9))
    left, right = np.cov(rng.normal(size=(12, 40))), rng.uniform(0.5, 2, size=9)
    ordered = metric_svd(w, 9, left=left, right=right, balanced=False)
    for rank in (1, 4, 9):
        first = np.asarray(ordered.a)[:, :rank] @ np.asarray(ordered.b)[:rank]
        best = metric_svd(w, rank, left=left, right=right)
        np.testing.assert_allclose(first, best.dense(), atol=1e-4)
