import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import Kronecker, nearest_kronecker

# A matrix (24, 35). One shape and rank for most tests, so that they share what is compiled.
SHAPE, RANK = ((6, 5), (4, 7)), 2
SIZE = 24, 35


def blocks(w: np.ndarray) -> np.ndarray:
    """The blocks (4, 7) of `w`, each as a row."""
    rows = [w[i : i + 4, j : j + 7].ravel() for i in range(0, 24, 4) for j in range(0, 35, 7)]
    return np.array(rows)


def tail(w: np.ndarray, rank: int) -> float:
    """The least squared error of any sum of so many Kronecker products."""
    return float(np.sum(np.linalg.svd(blocks(w), compute_uv=False)[rank:] ** 2))


def planted(
    rng: np.random.Generator, shape: tuple[tuple[int, int], tuple[int, int]] = SHAPE
) -> tuple[Kronecker, np.ndarray]:
    a, b = (rng.normal(size=(RANK, *sides)) for sides in shape)
    w = sum(np.kron(*term) for term in zip(a, b, strict=True))
    return Kronecker(jnp.asarray(a), jnp.asarray(b)), np.asarray(w)


@pytest.mark.usefixtures("double")
def test_dense_is_the_sum_of_numpys_products(rng: np.random.Generator) -> None:
    f, w = planted(rng)
    np.testing.assert_allclose(f.dense(), w, rtol=1e-12, atol=1e-12)
    assert (f.rank, f.size) == (2, 2 * (30 + 28))
    stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), f)
    np.testing.assert_allclose(stack.dense(), [w, 4 * w], rtol=1e-12, atol=1e-12)
    assert (stack.rank, stack.size) == (2, 2 * f.size)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rank", [1, RANK, 28])
def test_error_is_the_tail_of_the_singular_values(rank: int, rng: np.random.Generator) -> None:
    w = rng.normal(size=SIZE)
    f = nearest_kronecker(w, SHAPE, rank)
    assert (f.a.shape, f.b.shape) == ((rank, 6, 5), (rank, 4, 7))
    a, b = np.asarray(f.a), np.asarray(f.b)
    error = np.sum((w - sum(np.kron(*term) for term in zip(a, b, strict=True))) ** 2)
    np.testing.assert_allclose(error, tail(w, rank), rtol=1e-9, atol=1e-24)
    # Balanced, orthogonal to each other, in falling order.
    sizes = np.diag(np.linalg.svd(blocks(w), compute_uv=False)[:rank])
    np.testing.assert_allclose(np.einsum("tij,uij->tu", a, a), sizes, atol=1e-9)
    np.testing.assert_allclose(np.einsum("tij,uij->tu", b, b), sizes, atol=1e-9)


def test_a_planted_sum_is_recovered(rng: np.random.Generator) -> None:
    _, w = planted(rng)
    f = nearest_kronecker(w, SHAPE, RANK)
    assert f.a.dtype == f.b.dtype == jnp.float32
    np.testing.assert_allclose(f.dense(), w, atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPE, ((5, 6), (7, 4)), ((8, 8), (4, 4))])
def test_apply_takes_the_cheaper_way_and_never_forms_the_matrix(
    shape: tuple[tuple[int, int], tuple[int, int]],
    rng: np.random.Generator,
    compiled_cost: Callable[..., tuple[int, int]],
) -> None:
    f, w = planted(rng, shape)
    x = rng.normal(size=(2, 3, w.shape[0]))
    np.testing.assert_allclose(f.apply(jnp.asarray(x)), x @ w, atol=1e-4)
    np.testing.assert_allclose(f.apply(jnp.asarray(x[0, 0])), x[0, 0] @ w, atol=1e-4)

    (m1, n1), (m2, n2) = shape
    flops = 2 * RANK * min(m1 * m2 * n2 + m1 * n2 * n1, m1 * m2 * n1 + m2 * n1 * n2)
    row = jnp.asarray(x[:1, 0])
    taken, largest = compiled_cost(Kronecker.apply, f, row)
    assert taken == flops
    assert largest < w.size
    assert compiled_cost(lambda f, x: x @ f.dense(), f, row)[1] >= w.size


def test_vmap_equals_loop(rng: np.random.Generator) -> None:
    w = rng.normal(size=(3, *SIZE)).astype(np.float32)
    x = rng.normal(size=(3, 2, 24)).astype(np.float32)
    stack = jax.jit(jax.vmap(lambda w: nearest_kronecker(w, SHAPE, RANK)))(w)
    each = [nearest_kronecker(one, SHAPE, RANK) for one in w]
    np.testing.assert_allclose(stack.dense(), [np.asarray(f.dense()) for f in each], atol=1e-5)
    y = [np.asarray(f.apply(jnp.asarray(rows))) for f, rows in zip(each, x, strict=True)]
    np.testing.assert_allclose(jax.vmap(Kronecker.apply)(stack, x), y, atol=1e-4)


def test_jit_with_a_static_shape(rng: np.random.Generator) -> None:
    w = rng.normal(size=SIZE).astype(np.float32)
    jitted = jax.jit(nearest_kronecker, static_argnames=("shape", "rank"))
    f = jitted(w, shape=SHAPE, rank=RANK)
    np.testing.assert_allclose(f.dense(), nearest_kronecker(w, SHAPE, RANK).dense(), atol=1e-5)


def test_half_precision_is_solved_in_float32(rng: np.random.Generator) -> None:
    w = jnp.asarray(rng.normal(size=SIZE), jnp.bfloat16)
    f = nearest_kronecker(w, SHAPE, RANK)
    assert f.a.dtype == f.b.dtype == jnp.float32
    exact = np.asarray(w, np.float64)
    np.testing.assert_allclose(np.sum((exact - f.dense()) ** 2), tail(exact, RANK), rtol=1e-5)


@pytest.mark.usefixtures("double")
def test_gradient_through_the_sum(rng: np.random.Generator) -> None:
    w, way = (jnp.asarray(rng.normal(size=SIZE)) for _ in range(2))
    x = jnp.asarray(rng.normal(size=(3, 24)))

    @jax.jit
    def loss(w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(nearest_kronecker(w, SHAPE, RANK).apply(x)))

    difference = (loss(w + 1e-6 * way) - loss(w - 1e-6 * way)) / 2e-6
    np.testing.assert_allclose(jnp.sum(jax.grad(loss)(w) * way), difference, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "rank", "message"),
    [
        (((6, 5), (4, 6)), 1, "a matrix (24, 30), but w has (24, 35)"),
        (((6, 4), (5, 7)), 1, "rows (6, 5) must multiply to 24 and columns (4, 7) to 35"),
        (((-6, 5), (-4, 7)), 1, "must be at least 1"),
        (((6, 5), (4, 7), (1, 1)), 1, "shape must be ((m1, n1), (m2, n2))"),
        (((6, 4, 1), (5, 7, 1)), 1, "shape must be ((m1, n1), (m2, n2))"),
        ((24, 35), 1, "shape must be ((m1, n1), (m2, n2))"),
        (SHAPE, 0, "rank must lie between 1 and 28"),
        (SHAPE, 29, "rank must lie between 1 and 28"),
    ],
)
def test_what_does_not_fit(shape: Any, rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        nearest_kronecker(np.ones(SIZE), shape, rank)


def test_what_is_no_finite_matrix_and_no_integer() -> None:
    with pytest.raises(ValueError, match="w has NaN or infinite"):
        nearest_kronecker(np.full(SIZE, np.nan), SHAPE, 1)
    with pytest.raises(ValueError, match="non-empty matrix"):
        nearest_kronecker(np.ones((2, *SIZE)), SHAPE, 1)
    with pytest.raises(TypeError, match="each side in shape must be a Python integer"):
        nearest_kronecker(np.ones(SIZE), ((6.0, 5), (4, 7)), 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rank must be a Python integer"):
        nearest_kronecker(np.ones(SIZE), SHAPE, 1.0)  # type: ignore[arg-type]
