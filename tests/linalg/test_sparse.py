"""`sparsegpt` against Optimal Brain Surgeon on one input after the other, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import sparsegpt

Array = np.ndarray


def problem(rng: np.random.Generator, m: int, n: int) -> tuple[Array, Array]:
    """W, and C of correlated inputs of unlike strength."""
    x = rng.standard_normal((20 * m, m)) @ (np.eye(m) + 0.4 * rng.standard_normal((m, m)))
    x *= np.logspace(0, 1, m)[rng.permutation(m)]
    return rng.standard_normal((m, n)), x.T @ x / len(x)


def one_input_after_the_other(w: Array, second: Array, kept: float, block: int) -> Array:
    """As the paper derives it: the inverse of what is left to decide on, solved anew each time."""
    metric = second + 0.01 * np.mean(np.diag(second)) * np.eye(len(w))
    w = w.copy()
    for start in range(0, len(w), block):
        rows = range(start, min(start + block, len(w)))
        inverses = {i: np.linalg.inv(metric[i:, i:]) for i in rows}
        worth = np.stack([w[i] ** 2 / inverses[i][0, 0] for i in rows])
        count = worth.size - round(kept * worth.size)
        gone = np.zeros(worth.size, bool)
        gone[np.argsort(worth, axis=None)[:count]] = True
        for i, row in zip(rows, gone.reshape(worth.shape), strict=True):
            error = np.where(row, w[i], 0)
            w[i:] -= np.outer(inverses[i][0], error) / inverses[i][0, 0]
            w[i, row] = 0
    return w


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(("kept", "block"), [(0.5, 128), (0.5, 4), (0.3, 5), (0.1, 13), (0.7, 1)])
def test_it_is_the_paper_s(rng: np.random.Generator, kept: float, block: int, scale: float) -> None:
    w, second = problem(rng, 13, 7)
    expected = one_input_after_the_other(w, second, kept, block)
    found = np.asarray(sparsegpt(w, scale * second, kept, block=block))
    np.testing.assert_array_equal(found != 0, expected != 0)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_outputs_change_less_than_where_the_smallest_go(rng: np.random.Generator) -> None:
    w, second = problem(rng, 60, 20)
    smallest = np.where(abs(w) >= np.quantile(abs(w), 0.5), w, 0)
    cost = [np.trace((w - t).T @ second @ (w - t)) for t in (sparsegpt(w, second, 0.5), smallest)]
    assert cost[0] < 0.5 * cost[1]


def test_all_kept_is_the_matrix_itself(rng: np.random.Generator) -> None:
    w, second = problem(rng, 13, 7)
    np.testing.assert_allclose(sparsegpt(w, second, 1.0), w, rtol=1e-6)


def test_an_input_that_is_never_given_has_no_entries_left(rng: np.random.Generator) -> None:
    w, second = problem(rng, 13, 7)
    second[4] = second[:, 4] = 0
    found = np.asarray(sparsegpt(w, second, 0.5))
    assert (found[4] == 0).all()
    assert np.count_nonzero(found) == round(0.5 * 13 * 7)


def test_works_under_jit_and_vmap(rng: np.random.Generator) -> None:
    w, second = (
        jnp.asarray(np.stack(each))
        for each in zip(*(problem(rng, 9, 4) for _ in range(3)), strict=True)
    )
    found = jax.jit(jax.vmap(lambda *x: sparsegpt(*x, 0.5, block=4)))(w, second)
    for i in range(3):
        np.testing.assert_allclose(found[i], sparsegpt(w[i], second[i], 0.5, block=4), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"second": np.ones(4)}, r"second must be \(4, 4\)"),
        ({"second": np.triu(np.ones((4, 4)))}, "second is not symmetric"),
        ({"kept": 0.0}, "kept must lie in"),
        ({"kept": 1.5}, "kept must lie in"),
        ({"ridge": 0.0}, "ridge must lie in"),
        ({"block": 0}, "block must be at least 1"),
    ],
)
def test_errors(changed: dict[str, Any], message: str) -> None:
    chosen = {"w": np.ones((4, 2)), "second": np.eye(4), "kept": 0.5} | changed
    with pytest.raises(ValueError, match=message):
        sparsegpt(**chosen)
