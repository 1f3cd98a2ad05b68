"""Importance of one matrix from its weights, scores and mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.importance import IMPORTANCES, importance

W = np.array([[1.0, -2.0, 3.0], [0.5, -0.5, 4.0]], np.float32)
S = np.array([[2.0, -1.0, 6.0], [8.0, 0.0, 1.0]], np.float32)
M = np.array([[True, True, True], [False, False, True]])

# What the entries are in proportion to.
RAW = {
    "score": np.array([[2, 0, 6], [0, 0, 1]]),
    "mask": np.array([[1, 1, 1], [0, 0, 1]]),
    "magnitude": np.array([[1, 2, 3], [0, 0, 4]]),
    "none": np.ones((2, 3)),
}


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_each_kind(kind: str, floor: float) -> None:
    found = np.asarray(jax.jit(importance, static_argnums=0)(kind, W, S, M, floor))
    np.testing.assert_allclose(found, RAW[kind] / RAW[kind].mean() + floor, rtol=1e-6)
    assert found.mean() == pytest.approx(1 + floor)
    if kind != "none":
        np.testing.assert_array_equal(found[~M], np.float32(floor))  # pruned: the floor alone


def test_every_kind_is_tested() -> None:
    assert set(RAW) == set(IMPORTANCES)


def test_scale_does_not_matter() -> None:
    once, scaled = (np.asarray(importance("score", W, c * S, M, 0.1)) for c in (1, 1e-6))
    np.testing.assert_allclose(once, scaled, rtol=1e-5)


@pytest.mark.parametrize("scores", [np.zeros_like(S), -np.abs(S)], ids=["zero", "negative"])
def test_without_a_positive_score_all_count_the_same(scores: np.ndarray) -> None:
    np.testing.assert_array_equal(importance("score", W, scores, M, 0.25), np.full(W.shape, 1.25))


def test_nan_is_not_taken_for_the_absence_of_scores() -> None:
    scores = S.copy()
    scores[0, 0] = np.nan
    assert np.isnan(importance("score", W, scores, M, 0.1)).any()


@pytest.mark.parametrize("kind", ["score", "mask", "magnitude"])
def test_nothing_kept(kind: str) -> None:
    found = np.asarray(importance(kind, W, S, jnp.zeros_like(M), 0.0))
    np.testing.assert_array_equal(found, np.ones_like(W))


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30, 4e37])
def test_scores_near_the_ends_of_float32(scale: float) -> None:
    """The sum of the largest overflows."""
    scores = np.float32(scale) * S
    np.testing.assert_allclose(
        importance("score", W, scores, M, 0.1), importance("score", W, S, M, 0.1), rtol=1e-4
    )
