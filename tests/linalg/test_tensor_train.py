import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import TensorTrain, nearest_kronecker, tensor_train

# A matrix (24, 35). One shape and rank for most tests, so that they share what is compiled.
SHAPE, RANK = ((2, 3, 4), (5, 7, 1)), 2
SIZE = 24, 35
Sides = tuple[tuple[int, ...], tuple[int, ...]]


def planted(
    rng: np.random.Generator, shape: Sides = SHAPE, rank: int = RANK
) -> tuple[TensorTrain, np.ndarray]:
    """A random train and its matrix, entry by entry from the definition."""
    rows, columns = shape
    ranks = [1, *[rank] * (len(rows) - 1), 1]
    sizes = zip(ranks[:-1], rows, columns, ranks[1:], strict=True)
    cores = [rng.normal(size=size) for size in sizes]
    w = np.zeros((math.prod(rows), math.prod(columns)))
    for entry in np.ndindex(w.shape):
        digits = (np.unravel_index(entry[side], shape[side]) for side in (0, 1))
        chain = np.ones((1, 1))
        for core, i, j in zip(cores, *digits, strict=True):
            chain = chain @ core[:, i, j]
        w[entry] = chain.item()
    return TensorTrain(tuple(map(jnp.asarray, cores))), w


def tails(w: np.ndarray, shape: Sides, ranks: tuple[int, ...]) -> list[float]:
    """The least squared error of each unfolding at its rank."""
    rows, columns = shape
    digits = w.reshape(rows + columns)
    pairs = [axis for t in range(len(rows)) for axis in (t, len(rows) + t)]
    tensor = digits.transpose(pairs)
    least = []
    for t, rank in enumerate(ranks, start=1):
        unfolding = tensor.reshape(math.prod(tensor.shape[: 2 * t]), -1)
        least.append(float(np.sum(np.linalg.svd(unfolding, compute_uv=False)[rank:] ** 2)))
    return least


@pytest.mark.usefixtures("double")
def test_dense_is_the_chain_of_products(rng: np.random.Generator) -> None:
    f, w = planted(rng)
    np.testing.assert_allclose(f.dense(), w, rtol=1e-12, atol=1e-12)
    assert (f.ranks, f.size) == ((2, 2), 10 * 2 + 2 * 21 * 2 + 2 * 4)
    stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), f)
    np.testing.assert_allclose(stack.dense(), [w, 8 * w], rtol=1e-12, atol=1e-12)
    assert (stack.ranks, stack.size) == ((2, 2), 2 * f.size)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("max_rank", "ranks"), [(1, (1, 1)), (RANK, (2, 2)), (7, (7, 4)), (100, (10, 4))]
)
def test_error_is_within_the_bound_and_nothing_is_cut_without_need(
    max_rank: int, ranks: tuple[int, ...], rng: np.random.Generator
) -> None:
    w = rng.normal(size=SIZE) * np.exp(2 * rng.normal(size=SIZE))
    f = tensor_train(w, SHAPE, max_rank)
    assert f.ranks == ranks
    error, least = np.sum((w - f.dense()) ** 2), tails(w, SHAPE, ranks)
    rounding = 1e-24 * np.sum(w**2)
    assert max(least) * (1 - 1e-9) <= error <= sum(least) + rounding
    for core in f.cores[:-1]:
        gram = np.einsum("rmns,rmnt->st", core, core)
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(f.cores[-1]), np.linalg.norm(f.dense()))


def test_a_planted_train_is_recovered(rng: np.random.Generator) -> None:
    _, w = planted(rng)
    f = tensor_train(w, SHAPE, RANK)
    assert [core.shape for core in f.cores] == [(1, 2, 5, 2), (2, 3, 7, 2), (2, 4, 1, 1)]
    assert all(core.dtype == jnp.float32 for core in f.cores)
    np.testing.assert_allclose(f.dense(), w, atol=1e-4)


def test_two_cores_are_the_nearest_kronecker_products(rng: np.random.Generator) -> None:
    w = rng.normal(size=SIZE).astype(np.float32)
    f = tensor_train(w, ((6, 4), (5, 7)), RANK)
    nearest = nearest_kronecker(w, ((6, 5), (4, 7)), RANK)
    np.testing.assert_allclose(f.dense(), nearest.dense(), atol=1e-5)


def test_one_core_is_the_matrix(rng: np.random.Generator) -> None:
    w = rng.normal(size=SIZE).astype(np.float32)
    f = tensor_train(w, ((24,), (35,)), 1)
    assert f.ranks == ()
    np.testing.assert_array_equal(f.dense(), w)


@pytest.mark.parametrize("shape", [SHAPE, ((4, 3, 2), (1, 7, 5)), ((2, 3, 4), (2, 3, 4))])
def test_apply_takes_the_cheaper_way_and_never_forms_the_matrix(
    shape: Sides, rng: np.random.Generator, compiled_cost: Callable[..., tuple[int, int]]
) -> None:
    f, w = planted(rng, shape)
    x = rng.normal(size=(2, 3, w.shape[0]))
    f = jax.tree.map(lambda core: core.astype(jnp.float32), f)
    np.testing.assert_allclose(f.apply(jnp.asarray(x)), x @ w, atol=1e-3)
    np.testing.assert_allclose(f.apply(jnp.asarray(x[0, 0])), x[0, 0] @ w, atol=1e-3)

    (m1, m2, m3), (n1, n2, n3) = shape
    first, middle, last = (core.size for core in f.cores)
    from_right = m1 * m2 * last + m1 * middle * n3 + first * n2 * n3
    from_left = first * m2 * m3 + n1 * middle * m3 + n1 * n2 * last
    row = jnp.asarray(x[:1, 0])
    taken, largest = compiled_cost(TensorTrain.apply, f, row)
    assert taken == 2 * min(from_right, from_left)
    assert largest < w.size
    assert compiled_cost(lambda f, x: x @ f.dense(), f, row)[1] >= w.size


def test_tokens_as_trains_of_their_own(rng: np.random.Generator) -> None:
    embedding = rng.normal(size=(5, 24)).astype(np.float32)
    shape = (1, 1, 1), (2, 3, 4)
    split = jax.jit(jax.vmap(lambda row: tensor_train(row[None], shape, RANK)))
    tokens = split(embedding)
    assert [core.shape for core in tokens.cores] == [
        (5, 1, 1, 2, 2),
        (5, 2, 1, 3, 2),
        (5, 2, 1, 4, 1),
    ]
    ids = np.array([[3, 0], [3, 4]])
    some = jax.tree.map(lambda core: core[ids], tokens).dense()[..., 0, :]
    alone = [np.asarray(tensor_train(row[None], shape, RANK).dense())[0] for row in embedding]
    np.testing.assert_allclose(some, np.array(alone)[ids], atol=1e-5)
    for row, approximation in zip(embedding, alone, strict=True):
        least = tails(row[None], shape, (2, 2))
        error = np.sum((row - approximation) ** 2)
        assert max(least) * (1 - 1e-4) <= error <= sum(least) * (1 + 1e-4)


def test_vmap_equals_loop(rng: np.random.Generator) -> None:
    w = rng.normal(size=(3, *SIZE)).astype(np.float32)
    x = rng.normal(size=(3, 2, 24)).astype(np.float32)
    stack = jax.jit(jax.vmap(lambda w: tensor_train(w, SHAPE, RANK)))(w)
    each = [tensor_train(one, SHAPE, RANK) for one in w]
    np.testing.assert_allclose(stack.dense(), [np.asarray(f.dense()) for f in each], atol=1e-5)
    y = [np.asarray(f.apply(jnp.asarray(rows))) for f, rows in zip(each, x, strict=True)]
    np.testing.assert_allclose(jax.vmap(TensorTrain.apply)(stack, x), y, atol=1e-4)


def test_jit_with_a_static_shape(rng: np.random.Generator) -> None:
    w = rng.normal(size=SIZE).astype(np.float32)
    jitted = jax.jit(tensor_train, static_argnames=("shape", "max_rank"))
    f = jitted(w, shape=SHAPE, max_rank=RANK)
    np.testing.assert_allclose(f.dense(), tensor_train(w, SHAPE, RANK).dense(), atol=1e-5)


def test_half_precision_is_solved_in_float32(rng: np.random.Generator) -> None:
    w = jnp.asarray(rng.normal(size=SIZE), jnp.bfloat16)
    f = tensor_train(w, SHAPE, 100)
    assert all(core.dtype == jnp.float32 for core in f.cores)
    np.testing.assert_allclose(f.dense(), np.asarray(w, np.float64), atol=1e-5)


def test_zeros_stay_zeros() -> None:
    f = tensor_train(np.zeros(SIZE), SHAPE, RANK)
    np.testing.assert_array_equal(f.dense(), np.zeros(SIZE))


@pytest.mark.parametrize(
    ("shape", "max_rank", "message"),
    [
        (((2, 3, 4), (5, 6, 1)), 1, "a matrix (24, 30), but w has (24, 35)"),
        (((2, 3, 4), (5, 7)), 1, "as many row as column digits"),
        (((-2, 3, -4), (5, 7, 1)), 1, "must be at least 1"),
        (((), ()), 1, "shape must be"),
        (((24, 35),), 1, "shape must be"),
        ((24, 35), 1, "shape must be"),
        (SHAPE, 0, "max_rank must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit(shape: Any, max_rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tensor_train(np.ones(SIZE), shape, max_rank)


def test_what_is_no_finite_matrix_and_no_integer() -> None:
    with pytest.raises(ValueError, match="w has NaN or infinite"):
        tensor_train(np.full(SIZE, np.inf), SHAPE, 1)
    with pytest.raises(ValueError, match="non-empty matrix"):
        tensor_train(np.ones(24), ((1, 1), (4, 6)), 1)
    with pytest.raises(TypeError, match="each side in shape must be a Python integer"):
        tensor_train(np.ones(SIZE), ((2, 3, 4), (5, 7.0, 1)), 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_rank must be a Python integer"):
        tensor_train(np.ones(SIZE), SHAPE, True)
