"""Fisher information against one gradient after the other."""

from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.importance import fisher_scores
from tests.importance.test_score import FIRST, SECOND, Batch, batches, forward, loss
from tests.programs import equations

SHAPES = {
    FIRST: (5, 4),
    SECOND: (4, 6),
    "bert.encoder.layer.0.output.dense.bias": (4,),
    "classifier.kernel": (6, 3),
}
KERNELS = (FIRST, SECOND)


@pytest.fixture
def params() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in SHAPES.items()}


def gradients(params: Any, batch: Batch) -> list[dict[str, np.ndarray]]:
    """Of the loss of each row that counts, alone."""
    found = []
    for i in np.flatnonzero(batch["weight"]):
        alone = {name: x[i : i + 1] for name, x in batch.items()}
        grads = jax.grad(lambda p, one=alone: loss(forward(p, {}, one), one))(params)
        found.append({name: np.asarray(grads[name], np.float64) for name in KERNELS})
    return found


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_is_the_mean_over_examples_of_squared_gradients(params: Any, chunk: int) -> None:
    each = [g for batch in batches(np.random.default_rng(1)) for g in gradients(params, batch)]
    found = fisher_scores(forward, params, batches(np.random.default_rng(1)), loss, chunk)
    assert found.keys() == set(KERNELS)
    for name in KERNELS:
        expected = np.mean([np.square(g[name]) for g in each], axis=0)
        np.testing.assert_allclose(found[name], expected, rtol=2e-5)


def test_per_batch_is_the_square_of_the_sum_over_each_batch(params: Any) -> None:
    each = [gradients(params, batch) for batch in batches(np.random.default_rng(1))]
    count = sum(map(len, each))
    found = fisher_scores(forward, params, batches(np.random.default_rng(1)), loss, per="batch")
    for name in KERNELS:
        squares = [np.square(sum(g[name] for g in batch)) for batch in each]
        np.testing.assert_allclose(found[name], sum(squares) / count, rtol=5e-5, atol=1e-8)


def test_per_batch_has_the_expectation_it_says(params: Any) -> None:
    """Over all ways to cut four examples into batches of two."""
    rng, n, b = np.random.default_rng(2), 4, 2
    x, labels = rng.normal(size=(n, 5)).astype(np.float32), np.array([0, 2, 1, 2], np.int32)

    def rows(of: list[int]) -> Batch:
        return {"x": x[of], "labels": labels[of], "weight": np.ones(len(of), np.float32)}

    cuts = [(rows(list(o[:b])), rows(list(o[b:]))) for o in permutations(range(n)) if o[0] == 0]
    found = [fisher_scores(forward, params, cut, loss, per="batch") for cut in cuts]
    each = gradients(params, rows(list(range(n))))
    for name in KERNELS:
        fisher = np.mean([np.square(g[name]) for g in each], axis=0)
        mean = np.mean([g[name] for g in each], axis=0)
        expected = (n - b) / (n - 1) * fisher + n * (b - 1) / (n - 1) * mean**2
        average = np.mean([f[name] for f in found], axis=0)
        np.testing.assert_allclose(average, expected, rtol=1e-4, atol=1e-8)


def test_what_only_fills_a_batch_does_not_count(params: Any) -> None:
    (batch,) = list(batches(np.random.default_rng(1)))[:1]
    other = {**batch, "x": batch["x"].copy(), "labels": batch["labels"].copy()}
    other["x"][-1], other["labels"][-1] = 50.0, (batch["labels"][-1] + 1) % 3
    for per in ("example", "batch"):
        one, same = (fisher_scores(forward, params, [b], loss, per=per) for b in (batch, other))
        for name in KERNELS:
            np.testing.assert_array_equal(one[name], same[name])


@pytest.mark.parametrize(("per", "chunk", "held"), [("example", 2, 2), ("batch", 8, 1)])
def test_holds_no_more_gradients_than_it_says(params: Any, per: Any, chunk: int, held: int) -> None:
    """However many examples a batch has."""
    rng = np.random.default_rng(3)
    batch = {
        "x": rng.normal(size=(32, 5)).astype(np.float32),
        "labels": rng.integers(0, 3, 32).astype(np.int32),
        "weight": np.ones(32, np.float32),
    }
    program = equations(lambda p: fisher_scores(forward, p, [batch], loss, chunk, per=per), params)
    shapes = [v.aval.shape for equation in program for v in equation.outvars]
    like_kernels = [s[:-2] for s in shapes if s[-2:] in (SHAPES[FIRST], SHAPES[SECOND])]
    assert max(int(np.prod(s)) for s in like_kernels) == held


def test_needs_an_example(params: Any) -> None:
    for per in ("example", "batch"):
        with pytest.raises(ValueError, match="no example"):
            fisher_scores(forward, params, [], loss, per=per)
