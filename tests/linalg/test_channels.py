"""`eliminate_channels` against the loop of the textbook in float64, and what it says of sets."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import eliminate_channels

Array = np.ndarray


def problem(rng: np.random.Generator, m: int, n: int) -> tuple[Array, Array, Array]:
    """W, C of correlated channels of unlike strength, and R."""
    x = rng.standard_normal((20 * m, m)) @ (np.eye(m) + 0.4 * rng.standard_normal((m, m)))
    x *= np.logspace(0, 1.5, m)[rng.permutation(m)]
    g = rng.standard_normal((5 * n, n)) * np.logspace(0, 1, n)
    return rng.standard_normal((m, n)), x.T @ x / len(x), g.T @ g / len(g)


def cost(w: Array, second: Array, right: Array, gone: Array, ridge: float) -> float:
    """What it costs to do without some channels, the others solved for anew."""
    metric = second + ridge * np.diag(np.diag(second))
    left = np.setdiff1d(np.arange(len(w)), gone)
    t = np.zeros_like(w)
    t[left] = np.linalg.solve(metric[np.ix_(left, left)], metric[left] @ w)
    return float(np.trace((w - t).T @ metric @ (w - t) @ right))


def one_by_one(
    w: Array, second: Array, right: Array, ridge: float, unit: int = 1
) -> tuple[list[int], list[float]]:
    order: list[int] = []
    total = [0.0]
    rows = np.arange(len(w)).reshape(-1, unit)
    for _ in rows:
        rest = [j for j in range(len(rows)) if j not in order]
        costs = [cost(w, second, right, rows[[*order, j]].ravel(), ridge) for j in rest]
        order.append(rest[int(np.argmin(costs))])
        total.append(min(costs))
    return order, list(np.diff(total))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_one_by_one_it_is_the_greedy_rule(rng: np.random.Generator, scale: float) -> None:
    w, second, right = problem(rng, 13, 7)
    order, errors = one_by_one(w, second, right, 0.01)
    found = eliminate_channels(w, scale * second, right, block=1)
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.errors / scale, errors, rtol=2e-3)


@pytest.mark.parametrize("unit", [2, 3, 6])
def test_rows_of_a_unit_go_together(rng: np.random.Generator, unit: int) -> None:
    w, second, right = problem(rng, 18, 7)
    order, errors = one_by_one(w, second, right, 0.01, unit)
    found = eliminate_channels(w, second, right, block=1, unit=unit)
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.errors, errors, rtol=2e-3)
    # In blocks what goes is another set, of which the sum is exact.
    found = eliminate_channels(w, second, right, block=2, unit=unit)
    gone = np.arange(18).reshape(-1, unit)[found.order[:2]].ravel()
    expected = cost(w, second, right, gone, 0.01)
    assert found.errors[:2].sum() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("block", [4, 5, 13, 64])
def test_what_a_block_adds_is_exact(rng: np.random.Generator, block: int) -> None:
    w, second, right = problem(rng, 13, 7)
    found = eliminate_channels(w, second, right, block=block)
    assert sorted(found.order.tolist()) == list(range(13))
    total = np.cumsum(found.errors)
    for count in {*range(block, 13, block), 13}:
        expected = cost(w, second, right, np.asarray(found.order[:count]), 0.01)
        assert total[count - 1] == pytest.approx(expected, rel=2e-3)


def test_without_gradients_all_outputs_count_alike(rng: np.random.Generator) -> None:
    w, second, _ = problem(rng, 13, 7)
    same = [eliminate_channels(w, second, each, block=4) for each in (None, np.eye(7))]
    np.testing.assert_array_equal(*(each.order for each in same))
    np.testing.assert_allclose(*(each.errors for each in same), rtol=1e-5)


def test_channels_that_are_never_given_go_first_and_cost_nothing(rng: np.random.Generator) -> None:
    w, second, right = problem(rng, 13, 7)
    dead = [2, 7]
    second[dead] = second[:, dead] = 0
    found = eliminate_channels(w, second, right, block=2)
    assert sorted(found.order[:2].tolist()) == dead
    np.testing.assert_array_equal(found.errors[:2], 0)
    assert (found.errors[2:] > 0).all()


def test_a_channel_that_says_what_others_say_costs_what_the_ridge_does(
    rng: np.random.Generator,
) -> None:
    x = rng.standard_normal((500, 12))
    x = np.concatenate([x, x[:, :1] + x[:, 1:2]], axis=1)
    w = rng.standard_normal((13, 7))
    found = eliminate_channels(w, x.T @ x / len(x), ridge=1e-4, block=1)
    assert int(found.order[0]) in (0, 1, 12)
    assert found.errors[0] < 2e-3 * found.errors[1]


def test_a_moment_that_is_not_quite_semi_definite(rng: np.random.Generator) -> None:
    """Summed in float32, beside channels a thousand times the others: a value head of SmolLM2."""
    w, second, right = problem(rng, 16, 7)
    scale = np.sqrt(np.diag(second))
    values, vectors = np.linalg.eigh(second / np.outer(scale, scale))
    values[0] = -0.02
    second = np.outer(scale, scale) * ((vectors * values) @ vectors.T)
    found = eliminate_channels(w, second, right, ridge=0.01, block=4, unit=2)
    assert sorted(found.order.tolist()) == list(range(8))
    assert (found.errors > 0).all()
    same = eliminate_channels(w, second, right, ridge=0.16, block=4, unit=2)
    np.testing.assert_allclose(found.errors, same.errors, rtol=1e-3)


def test_works_under_jit_and_vmap(rng: np.random.Generator) -> None:
    w, second, right = (
        jnp.asarray(np.stack(each))
        for each in zip(*(problem(rng, 9, 4) for _ in range(3)), strict=True)
    )
    found = jax.jit(jax.vmap(lambda *x: eliminate_channels(*x, block=3)))(w, second, right)
    for i in range(3):
        alone = eliminate_channels(w[i], second[i], right[i], block=3)
        np.testing.assert_array_equal(found.order[i], alone.order)
        np.testing.assert_allclose(found.errors[i], alone.errors, rtol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"second": np.ones(4)}, r"second must be \(4, 4\)"),
        ({"right": np.ones(2)}, r"right must be \(2, 2\)"),
        ({"right": np.ones((3, 3))}, "right has shape"),
        ({"second": np.triu(np.ones((4, 4)))}, "second is not symmetric"),
        ({"ridge": 0.0}, "ridge must lie in"),
        ({"block": 0}, "block must be at least 1"),
        ({"unit": 3}, "unit must divide the 4 rows of w, got 3"),
        ({"unit": 0}, "unit must divide"),
    ],
)
def test_errors(changed: dict[str, Any], message: str) -> None:
    chosen = {"w": np.ones((4, 2)), "second": np.eye(4)} | changed
    with pytest.raises(ValueError, match=message):
        eliminate_channels(**chosen)
