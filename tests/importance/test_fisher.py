"""Fisher information against one gradient after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.importance import fisher_scores
from tests.importance.test_score import FIRST, SECOND, batches, forward, loss

SHAPES = {
    FIRST: (5, 4),
    SECOND: (4, 6),
    "bert.encoder.layer.0.output.dense.bias": (4,),
    "classifier.kernel": (6, 3),
}


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_is_the_mean_over_examples_of_squared_gradients(chunk: int) -> None:
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in SHAPES.items()}
    expected = {name: np.zeros(SHAPES[name]) for name in (FIRST, SECOND)}
    count = 0
    for batch in batches(np.random.default_rng(1)):
        for i in np.flatnonzero(batch["weight"]):
            alone = {name: x[i : i + 1] for name, x in batch.items()}
            grads = jax.grad(lambda p, one=alone: loss(forward(p, {}, one), one))(params)
            for name in expected:
                expected[name] += np.square(np.asarray(grads[name], np.float64))
            count += 1
    found = fisher_scores(forward, params, batches(np.random.default_rng(1)), loss, chunk)
    assert found.keys() == expected.keys()
    for name, total in expected.items():
        np.testing.assert_allclose(found[name], total / count, rtol=2e-5)


def test_needs_an_example() -> None:
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match="no example"):
        fisher_scores(forward, params, [], loss)
