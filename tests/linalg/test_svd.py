from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import svd, weighted_svd
from lpaf_jax.linalg.svd import Sharing

# One shape and rank for most tests, so that they share what is compiled.
SHAPE, RANK = (12, 10), 3
SHARINGS = get_args(Sharing)
Matrix = Callable[..., np.ndarray]


def tail(w: np.ndarray, rank: int) -> float:
    """The least squared error of any rank-k approximation (Eckart & Young)."""
    return float(np.sum(np.linalg.svd(w, compute_uv=False)[rank:] ** 2))


def shared(importance: np.ndarray, sharing: str) -> np.ndarray:
    rows, columns = importance.sum(axis=1, keepdims=True), importance.sum(axis=0, keepdims=True)
    one = np.ones_like(importance)
    return {"row": rows * one, "column": columns * one, "separable": rows * columns}[sharing]


@pytest.mark.parametrize(("shape", "rank"), [(SHAPE, RANK), (SHAPE[::-1], 10), ((9, 9), 1)])
def test_svd_reaches_the_eckart_young_error(
    shape: tuple[int, int], rank: int, rng: np.random.Generator
) -> None:
    w = rng.normal(size=shape)
    f = svd(w, rank)
    assert (f.a.shape, f.b.shape) == ((shape[0], rank), (rank, shape[1]))
    error = np.sum((w - np.asarray(f.dense(), np.float64)) ** 2)
    np.testing.assert_allclose(error, tail(w, rank), rtol=1e-5, atol=1e-9)
    a, b = np.asarray(f.a), np.asarray(f.b)
    np.testing.assert_allclose(a.T @ a, b @ b.T, atol=1e-5)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("shape", [SHAPE, SHAPE[::-1]])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_closed_form_reaches_the_least_weighted_error(
    shape: tuple[int, int], sharing: Sharing, rng: np.random.Generator
) -> None:
    """Scaling by r in place of √r, or the scales left in the factors, would miss it."""
    w, importance = rng.normal(size=shape), np.exp(2 * rng.normal(size=shape))
    weight = shared(importance, sharing)
    f = weighted_svd(w, importance, RANK, sharing)
    a, b = np.asarray(f.a), np.asarray(f.b)
    error = np.sum(weight * (w - a @ b) ** 2)
    np.testing.assert_allclose(error, tail(np.sqrt(weight) * w, RANK), rtol=1e-9)
    np.testing.assert_allclose(a.T @ a, b @ b.T, atol=1e-9)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_float32_agrees_with_the_least_error(sharing: Sharing, rng: np.random.Generator) -> None:
    w, importance = rng.normal(size=SHAPE), np.exp(3 * rng.normal(size=SHAPE))
    weight = shared(importance, sharing)
    f = weighted_svd(w, importance, RANK, sharing)
    assert f.a.dtype == jnp.float32
    error = np.sum(weight * (w - np.asarray(f.dense(), np.float64)) ** 2)
    np.testing.assert_allclose(error, tail(np.sqrt(weight) * w, RANK), rtol=1e-4)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_scale_of_importance_is_irrelevant(sharing: Sharing, rng: np.random.Generator) -> None:
    w, importance = rng.normal(size=SHAPE), rng.exponential(size=SHAPE)
    small, large = (
        np.asarray(weighted_svd(w, importance * c, RANK, sharing).dense()) for c in (1e-18, 1e18)
    )
    np.testing.assert_allclose(small, large, atol=1e-5)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_rows_and_columns_of_no_weight(sharing: Sharing, rng: np.random.Generator) -> None:
    w, importance = rng.normal(size=SHAPE), rng.exponential(size=SHAPE)
    importance[3], importance[:, 7] = 0, 0
    weight = shared(importance, sharing)
    f = weighted_svd(w, importance, RANK, sharing)
    assert np.isfinite(f.a).all()
    assert np.isfinite(f.b).all()
    error = np.sum(weight * (w - np.asarray(f.dense(), np.float64)) ** 2)
    np.testing.assert_allclose(error, tail(np.sqrt(weight) * w, RANK), rtol=1e-4)
    # Nothing fits them, and still they must stay in the range of the matrix.
    assert np.abs(f.dense()).max() < 10 * np.abs(w).max()


def test_rank_left_over_goes_to_rows_of_no_weight(rng: np.random.Generator) -> None:
    w, importance = rng.normal(size=SHAPE), np.ones(SHAPE)
    importance[1:] = 0
    f = weighted_svd(w, importance, RANK, "row")
    error = np.sum((w - np.asarray(f.dense(), np.float64)) ** 2)
    # The one weighted row takes one dimension; the other two are the best for what is left.
    rest = w[1:] @ (np.eye(SHAPE[1]) - np.linalg.pinv(w[:1]) @ w[:1])
    np.testing.assert_allclose(error, tail(rest, RANK - 1), rtol=1e-2)


def test_half_precision_is_solved_in_float32(rng: np.random.Generator) -> None:
    w = jnp.asarray(rng.normal(size=SHAPE), jnp.bfloat16)
    mask = rng.integers(0, 2, size=SHAPE).astype(bool)
    for f in (svd(w, RANK), weighted_svd(w, mask, RANK)):
        assert f.a.dtype == f.b.dtype == jnp.float32
    error = np.sum((np.asarray(w, np.float64) - np.asarray(svd(w, RANK).dense())) ** 2)
    np.testing.assert_allclose(error, tail(np.asarray(w, np.float64), RANK), rtol=1e-5)


def test_vmap_equals_loop(rng: np.random.Generator) -> None:
    w = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    importance = rng.exponential(size=(3, *SHAPE)).astype(np.float32)

    def solve(w: jax.Array, importance: jax.Array) -> jax.Array:
        return weighted_svd(w, importance, RANK, "separable").dense()

    loop = [np.asarray(solve(*pair)) for pair in zip(w, importance, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(solve))(w, importance), loop, atol=1e-5)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("kind", "shape"), [("plain", (3, 8)), ("separable", (7, 5)), ("separable", (5, 7))]
)
def test_gradient_through_the_product(
    kind: str, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    w, importance, target = (jnp.asarray(rng.exponential(size=shape)) for _ in range(3))
    ways = [jnp.asarray(rng.normal(size=shape)) for _ in range(2)]

    @jax.jit
    def loss(w: jax.Array, importance: jax.Array) -> jax.Array:
        f = svd(w, 3) if kind == "plain" else weighted_svd(w, importance, 3, "separable")
        return jnp.sum(target * jnp.sin(f.dense()))

    def moved(step: float) -> jax.Array:
        return loss(w + step * ways[0], importance + step * ways[1])

    difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(w, importance)
    slope = sum(jnp.sum(g * way) for g, way in zip(gradients, ways, strict=True))
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("double")
def test_gradient_at_repeated_singular_values(spectrum_matrix: Matrix) -> None:
    w = spectrum_matrix(6, 5, np.array([2.0, 2.0, 2.0, 1.0, 1.0]))
    # d/dW of ‖W_k‖² / 2 is W_k wherever the cut runs through a gap.
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(svd(w, 3).dense() ** 2) / 2))(w)
    np.testing.assert_allclose(gradient, svd(w, 3).dense(), atol=1e-9)


@pytest.mark.parametrize("w", [np.zeros((4, 4)), np.eye(4), np.ones((4, 4))])
def test_gradient_is_finite_where_none_exists(w: np.ndarray) -> None:
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(svd(w, 2).dense() ** 3)))(w.astype(np.float32))
    assert np.isfinite(gradient).all()
