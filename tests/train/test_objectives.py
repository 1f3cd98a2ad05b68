"""Span and regression objectives against scipy in float64 and the losses of transformers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from lpaf_jax.train import CLASSIFICATION, REGRESSION, SPANS, Objective

BATCH, LENGTH = 5, 7
Batch = dict[str, Any]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.fixture
def spans(rng: np.random.Generator) -> Batch:
    """Texts of 7, 4, 2, 6 and 1 tokens; the fourth row only fills the batch up."""
    lengths = np.array([7, 4, 2, 6, 1])
    ends = np.sort(rng.integers(0, lengths[:, None], (BATCH, 2)), axis=1)
    return {
        "attention_mask": (np.arange(LENGTH) < lengths[:, None]).astype(np.int32),
        "labels": ends.astype(np.int32),
        "weight": np.array([1, 1, 1, 0, 1], np.float32),
    }


@pytest.fixture
def logits(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 2, (2, BATCH, LENGTH, 2)).astype(np.float32)


def texts(batch: Batch) -> list[tuple[int, int]]:
    """Row and length of each text that counts."""
    lengths = batch["attention_mask"].sum(1)
    return [(i, int(lengths[i])) for i in range(BATCH) if batch["weight"][i]]


def test_span_loss(spans: Batch, logits: np.ndarray) -> None:
    rows = [
        -log_softmax(logits[0, i, :n, end].astype(float))[spans["labels"][i, end]]
        for i, n in texts(spans)
        for end in (0, 1)
    ]
    assert float(SPANS.loss(logits[0], spans)) == pytest.approx(np.mean(rows), rel=1e-6)


def test_span_divergence_and_distance(spans: Batch, logits: np.ndarray) -> None:
    gaps, distances, temperature = [], [], 2.5
    for i, n in texts(spans):
        for end in (0, 1):
            first, second = logits[:, i, :n, end].astype(float)
            p, q = softmax(first), softmax(second)
            gaps.append(0.5 * (rel_entr(p, q) + rel_entr(q, p)).sum())
            teacher, student = softmax(second / temperature), softmax(first / temperature)
            distances.append(temperature**2 * rel_entr(teacher, student).sum())
    assert float(SPANS.divergence(*logits, spans)) == pytest.approx(np.mean(gaps), rel=1e-5)
    found = float(SPANS.distance(*logits, spans, temperature))
    assert found == pytest.approx(np.mean(distances), rel=1e-5)


def test_regression(rng: np.random.Generator) -> None:
    first, second = rng.normal(size=(2, BATCH, 1)).astype(np.float32)
    batch = {
        "labels": rng.normal(size=BATCH).astype(np.float32),
        "weight": np.array([1, 0, 1, 1, 1], np.float32),
    }
    counted = batch["weight"] > 0
    errors = np.square(first[:, 0].astype(float) - batch["labels"])[counted]
    assert float(REGRESSION.loss(first, batch)) == pytest.approx(errors.mean(), rel=1e-6)
    gaps = np.square(first.astype(float) - second)[counted, 0].mean()
    assert float(REGRESSION.divergence(first, second, batch)) == pytest.approx(gaps, rel=1e-6)
    for temperature in (1.0, 4.0):
        found = float(REGRESSION.distance(first, second, batch, temperature))
        assert found == pytest.approx(gaps, rel=1e-6)


def test_is_what_transformers_computes(rng: np.random.Generator, logits: np.ndarray) -> None:
    """Where nothing is padded: transformers lets the logits of padding count."""
    torch = pytest.importorskip("torch")
    from transformers.loss.loss_utils import (
        ForQuestionAnsweringLoss,
        ForSequenceClassificationLoss,
    )

    one = torch.ones(BATCH)
    ends = rng.integers(0, LENGTH, (BATCH, 2))
    whole = {
        "attention_mask": np.ones((BATCH, LENGTH), np.int32),
        "labels": ends.astype(np.int32),
        "weight": np.ones(BATCH, np.float32),
    }
    theirs = torch.tensor(logits[0], requires_grad=True)
    labels = torch.tensor(ends)
    loss = ForQuestionAnsweringLoss(theirs[..., 0], theirs[..., 1], labels[:, 0], labels[:, 1])
    loss.backward()
    value, grad = jax.value_and_grad(SPANS.loss)(logits[0], whole)
    assert float(value) == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_allclose(grad, theirs.grad, atol=1e-7)

    class Config:
        problem_type, num_labels = "regression", 1

    outputs = rng.normal(size=(BATCH, 1)).astype(np.float32)
    theirs = torch.tensor(outputs, requires_grad=True)
    ForSequenceClassificationLoss(one, theirs, Config()).backward()
    batch = {"labels": np.ones(BATCH, np.float32), "weight": np.ones(BATCH, np.float32)}
    value, grad = jax.value_and_grad(REGRESSION.loss)(outputs, batch)
    assert float(value) == pytest.approx(
        ForSequenceClassificationLoss(one, theirs, Config()).item(), rel=1e-6
    )
    np.testing.assert_allclose(grad, theirs.grad, rtol=1e-6)


def terms(logits: np.ndarray, spans: Batch) -> list[float]:
    return [
        float(SPANS.loss(logits[0], spans)),
        float(SPANS.divergence(*logits, spans)),
        float(SPANS.distance(*logits, spans, 0.5)),
    ]


def test_spans_do_not_depend_on_the_padding(spans: Batch, logits: np.ndarray) -> None:
    padding = spans["attention_mask"] == 0
    other = logits.copy()
    other[:, padding] = np.array([[1e4], [-1e4]])[:, :, None]
    assert terms(other, spans) == terms(logits, spans)
    # The same texts beside a longer one.
    longer = {**spans, "attention_mask": np.pad(spans["attention_mask"], ((0, 0), (0, 3)))}
    wide = np.pad(logits, ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=50.0)
    np.testing.assert_allclose(terms(wide, longer), terms(logits, spans), rtol=1e-6)
    for term in (SPANS.loss, lambda x, b: SPANS.divergence(x, logits[1], b)):
        grad = np.asarray(jax.grad(term)(jnp.asarray(logits[0]), spans))
        assert not grad[padding].any()
        assert grad[~padding & (spans["weight"] > 0)[:, None]].any()


CASES = {
    "classes": (CLASSIFICATION, (BATCH, 4)),
    "regression": (REGRESSION, (BATCH, 1)),
    "spans": (SPANS, (BATCH, LENGTH, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_divergence_is_symmetric_and_zero_at_equality(
    name: str, spans: Batch, rng: np.random.Generator
) -> None:
    objective, shape = CASES[name]
    first, second = (jnp.asarray(rng.normal(0, 3, shape), jnp.float32) for _ in range(2))
    slope = jax.jit(jax.value_and_grad(objective.divergence, argnums=(0, 1)))
    value, grads = slope(first, second, spans)
    back, grads_back = slope(second, first, spans)
    assert float(value) == pytest.approx(float(back), rel=1e-6)
    assert float(value) > 0
    for one, other in zip(grads, grads_back[::-1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    value, grads = slope(first, first, spans)
    assert value == 0
    assert not any(np.any(g) for g in grads)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [0.0, 1e3])
def test_gradients_are_finite(
    name: str, size: float, spans: Batch, rng: np.random.Generator
) -> None:
    """With texts of one token, where nothing is left to choose, and with extreme outputs."""
    objective: Objective
    objective, shape = CASES[name]
    first, second = (jnp.asarray(size * rng.normal(size=shape), jnp.float32) for _ in range(2))
    labels = {"classes": spans["labels"][:, 0] % 4, "spans": spans["labels"]}
    batch = {**spans, "labels": labels.get(name, np.ones(BATCH, np.float32))}

    def total(first: Any, second: Any) -> Any:
        gap = objective.divergence(first, second, batch)
        return objective.loss(first, batch) + gap + objective.distance(first, second, batch, 0.5)

    value, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(first, second)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)
