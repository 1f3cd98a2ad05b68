from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import LowRank, svd, weighted_error, weighted_svd
from lpaf_jax.linalg.svd import Sharing

SHAPES = [(12, 20), (20, 12), (9, 9)]
SHARINGS = get_args(Sharing)
Matrix = Callable[..., np.ndarray]


def tail(w: np.ndarray, rank: int) -> float:
    """The least squared error of any rank-k approximation (Eckart & Young)."""
    return float(np.sum(np.linalg.svd(w, compute_uv=False)[rank:] ** 2))


def shared(importance: np.ndarray, sharing: str) -> np.ndarray:
    rows, columns = importance.sum(axis=1, keepdims=True), importance.sum(axis=0, keepdims=True)
    one = np.ones_like(importance)
    return {"row": rows * one, "column": columns * one, "separable": rows * columns}[sharing]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_svd_reaches_the_eckart_young_error(
    shape: tuple[int, int], rank: int, rng: np.random.Generator
) -> None:
    w = rng.normal(size=shape)
    f = svd(w, rank)
    assert (f.a.shape, f.b.shape) == ((shape[0], rank), (rank, shape[1]))
    error = np.sum((w - np.asarray(f.dense(), np.float64)) ** 2)
    np.testing.assert_allclose(error, tail(w, rank), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(f.a.T @ f.a, f.b @ f.b.T, atol=1e-5)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_closed_form_reaches_the_least_weighted_error(
    shape: tuple[int, int], sharing: Sharing, rng: np.random.Generator
) -> None:
    """Scaling by r in place of √r, or the scales left in the factors, would miss it."""
    w, importance = rng.normal(size=shape), np.exp(2 * rng.normal(size=shape))
    weight = shared(importance, sharing)
    f = weighted_svd(w, importance, 4, sharing)
    error = np.sum(weight * (w - np.asarray(f.dense())) ** 2)
    np.testing.assert_allclose(error, tail(np.sqrt(weight) * w, 4), rtol=1e-9)
    np.testing.assert_allclose(f.a.T @ f.a, f.b @ f.b.T, atol=1e-9)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_float32_agrees_with_the_least_error(sharing: Sharing, rng: np.random.Generator) -> None:
    w, importance = rng.normal(size=(30, 18)), np.exp(3 * rng.normal(size=(30, 18)))
    weight = shared(importance, sharing)
    f = weighted_svd(w, importance, 5, sharing)
    assert f.a.dtype == jnp.float32
    error = np.sum(weight * (w - np.asarray(f.dense(), np.float64)) ** 2)
    np.testing.assert_allclose(error, tail(np.sqrt(weight) * w, 5), rtol=1e-4)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_scale_of_importance_is_irrelevant(sharing: Sharing, rng: np.random.Generator) -> None:
    w, importance = rng.normal(size=(8, 6)), rng.exponential(size=(8, 6))
    small, large = (weighted_svd(w, importance * c, 2, sharing).dense() for c in (1e-18, 1e18))
    np.testing.assert_allclose(small, large, atol=1e-5)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_rows_and_columns_of_no_weight(sharing: Sharing, rng: np.random.Generator) -> None:
    w, importance = rng.normal(size=(12, 10)), rng.exponential(size=(12, 10))
    importance[3], importance[:, 7] = 0, 0
    weight = shared(importance, sharing)
    f = weighted_svd(w, importance, 3, sharing)
    assert np.isfinite(f.a).all()
    assert np.isfinite(f.b).all()
    error = np.sum(weight * (w - np.asarray(f.dense(), np.float64)) ** 2)
    np.testing.assert_allclose(error, tail(np.sqrt(weight) * w, 3), rtol=1e-4)
    # Fitted by nothing, they must still stay in the range of the matrix.
    assert np.abs(f.dense()).max() < 10 * np.abs(w).max()


def test_rank_left_over_goes_to_rows_of_no_weight(rng: np.random.Generator) -> None:
    w, importance = rng.normal(size=(8, 10)), np.ones((8, 10))
    importance[2:] = 0
    f = weighted_svd(w, importance, 5, "row")
    error = np.sum((w - np.asarray(f.dense(), np.float64)) ** 2)
    # Two weighted rows take two dimensions; the other three are the best for what is left.
    rest = w[2:] @ (np.eye(10) - np.linalg.pinv(w[:2]) @ w[:2])
    np.testing.assert_allclose(error, tail(rest, 3), rtol=1e-2)


def test_half_precision_is_solved_in_float32(rng: np.random.Generator) -> None:
    w = jnp.asarray(rng.normal(size=(8, 6)), jnp.bfloat16)
    importance = jnp.asarray(rng.integers(0, 2, size=(8, 6)), jnp.bool_)
    for f in (svd(w, 6), weighted_svd(w, importance, 6)):
        assert f.a.dtype == f.b.dtype == jnp.float32
        np.testing.assert_allclose(f.dense(), np.asarray(w, np.float32), atol=1e-5)


def test_vmap_equals_loop(rng: np.random.Generator) -> None:
    w = jnp.asarray(rng.normal(size=(3, 7, 5)), jnp.float32)
    importance = jnp.asarray(rng.exponential(size=(3, 7, 5)), jnp.float32)
    stack = jax.jit(jax.vmap(lambda w, i: weighted_svd(w, i, 2, "separable")))(w, importance)
    loop = [weighted_svd(x, i, 2, "separable").dense() for x, i in zip(w, importance, strict=True)]
    np.testing.assert_allclose(stack.dense(), loop, atol=1e-5)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["plain", "separable"])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (3, 8)])
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


@pytest.mark.parametrize("w", [np.zeros((4, 3)), np.eye(4), np.ones((3, 4))])
def test_gradient_is_finite_where_none_exists(w: np.ndarray) -> None:
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(svd(w, 2).dense() ** 3)))(w.astype(np.float32))
    assert np.isfinite(gradient).all()


def test_weighted_error_prefers_the_weighted_solution(rng: np.random.Generator) -> None:
    w = rng.normal(size=(20, 20))
    importance = np.exp(1.5 * rng.normal(size=(20, 1))) * np.ones((1, 20))
    plain, weighted = svd(w, 5), weighted_svd(w, importance, 5, "row")
    assert isinstance(weighted, LowRank)
    assert weighted_error(w, importance, weighted) < 0.9 * weighted_error(w, importance, plain)
