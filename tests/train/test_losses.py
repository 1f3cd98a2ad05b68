"""Losses against scipy in float64."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from lpaf_jax.train import cross_entropy, symmetric_kl

BATCH, LABELS = 6, 4
WEIGHT = np.array([1, 0.5, 0, 2, 0, 1], np.float32)
PADDING = WEIGHT == 0


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture
def logits(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 3, (2, BATCH, LABELS)).astype(np.float32)


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, LABELS, BATCH).astype(np.int32)


def mean(rows: np.ndarray) -> float:
    return float((WEIGHT * rows).sum() / WEIGHT.sum())


def test_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> None:
    exact = log_softmax(logits[0].astype(float), axis=-1)[np.arange(BATCH), labels]
    assert float(cross_entropy(logits[0], labels, WEIGHT)) == pytest.approx(-mean(exact), rel=1e-6)


def test_cross_entropy_gradient(logits: np.ndarray, labels: np.ndarray) -> None:
    residual = softmax(logits[0].astype(float), axis=-1) - np.eye(LABELS)[labels]
    expected = WEIGHT[:, None] * residual / WEIGHT.sum()
    found = jax.jit(jax.grad(cross_entropy))(logits[0], labels, WEIGHT)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_symmetric_kl(logits: np.ndarray) -> None:
    p, q = softmax(logits.astype(float), axis=-1)
    exact = 0.5 * (rel_entr(p, q) + rel_entr(q, p)).sum(-1)
    assert float(symmetric_kl(*logits, WEIGHT)) == pytest.approx(mean(exact), rel=1e-5)


def test_symmetric_kl_is_symmetric(logits: np.ndarray) -> None:
    assert symmetric_kl(*logits, WEIGHT) == symmetric_kl(*logits[::-1], WEIGHT)


def test_symmetric_kl_is_zero_at_equality(logits: np.ndarray) -> None:
    value, grad = jax.jit(jax.value_and_grad(symmetric_kl))(logits[0], logits[0], WEIGHT)
    assert value == 0
    assert not np.any(grad)
    # Logits that differ by a constant are the same probabilities.
    assert abs(symmetric_kl(logits[0], logits[0] + 5, WEIGHT)) < 1e-6


def test_padding_rows_do_not_count(logits: np.ndarray, labels: np.ndarray) -> None:
    other, other_labels = logits.copy(), labels.copy()
    other[:, PADDING] = 1e4 * np.array([1, -1, 0, 1])
    other_labels[PADDING] = 3
    assert cross_entropy(other[0], other_labels, WEIGHT) == cross_entropy(logits[0], labels, WEIGHT)
    assert symmetric_kl(*other, WEIGHT) == symmetric_kl(*logits, WEIGHT)


def test_extreme_logits() -> None:
    first = np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]], np.float32)
    second = -first
    weight = np.ones(3, np.float32)
    value, grads = jax.jit(jax.value_and_grad(symmetric_kl, argnums=(0, 1)))(first, second, weight)
    # (p − q)(log p − log q) is 2·10⁴ for each of the two classes, in two rows of three.
    assert float(value) == pytest.approx(2 / 3 * 2e4)
    assert all(np.isfinite(g).all() for g in grads)
    labels = np.array([1, 1, 0], np.int32)
    value, grad = jax.jit(jax.value_and_grad(cross_entropy))(first, labels, weight)
    assert float(value) == pytest.approx((2e4 + np.log(2)) / 3)
    assert np.isfinite(grad).all()
