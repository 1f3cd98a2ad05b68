"""First-order scores against the analytic gradient of a linear classifier, in float64."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from lpaf_jax.importance import FIRST_ORDER, first_order_scores

FIRST = "bert.encoder.layer.0.attention.self.query.kernel"
SECOND = "bert.encoder.layer.0.output.dense.kernel"
Batch = dict[str, np.ndarray]


def forward(params: Any, masks: Any, batch: Any) -> jax.Array:
    assert masks == {}
    hidden = batch["x"] @ params[FIRST] + params["bert.encoder.layer.0.output.dense.bias"]
    return hidden @ params[SECOND] @ params["classifier.kernel"]


def loss(logits: jax.Array, batch: Any) -> jax.Array:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][:, None], axis=-1)
    return -jnp.sum(batch["weight"] * chosen[:, 0]) / jnp.sum(batch["weight"])


def batches(rng: np.random.Generator) -> Iterator[Batch]:
    for rows in (4, 4, 4, 2):
        yield {
            "x": rng.normal(size=(rows, 5)).astype(np.float32),
            "labels": rng.integers(0, 3, rows).astype(np.int32),
            "weight": np.array([1] * (rows - 1) + [0], np.float32),
        }


@pytest.mark.parametrize("criterion", FIRST_ORDER)
def test_is_the_sum_over_batches_of_gradient_times_weight(criterion: str) -> None:
    rng = np.random.default_rng(0)
    shapes = {
        FIRST: (5, 4),
        SECOND: (4, 6),
        "bert.encoder.layer.0.output.dense.bias": (4,),
        "classifier.kernel": (6, 3),
    }
    params = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    exact = {name: w.astype(float) for name, w in params.items()}

    gain = {"first-order": np.negative, "sensitivity": np.abs}[criterion]
    expected = {name: np.zeros(shapes[name]) for name in (FIRST, SECOND)}
    for batch in batches(np.random.default_rng(1)):
        hidden = batch["x"] @ exact[FIRST] + exact["bert.encoder.layer.0.output.dense.bias"]
        head = exact["classifier.kernel"]
        error = softmax(hidden @ exact[SECOND] @ head, axis=-1) - np.eye(3)[batch["labels"]]
        error *= (batch["weight"] / batch["weight"].sum())[:, None]
        expected[SECOND] += gain(hidden.T @ error @ head.T * exact[SECOND])
        expected[FIRST] += gain(batch["x"].T @ error @ head.T @ exact[SECOND].T * exact[FIRST])

    before = {name: w.copy() for name, w in params.items()}
    given = batches(np.random.default_rng(1))
    found = first_order_scores(forward, params, given, loss, criterion)
    assert set(found) == {FIRST, SECOND}  # kernels of blocks only
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
        assert (expected[name] < 0).any() == (criterion == "first-order")
    for name, w in params.items():
        np.testing.assert_array_equal(w, before[name])


def test_no_batch_no_score() -> None:
    params = {FIRST: jnp.ones((2, 2))}
    assert not np.any(first_order_scores(forward, params, [], loss)[FIRST])
