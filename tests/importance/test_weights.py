"""Importance of one matrix from its weights, scores and mask."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpaf_jax.core.errors import LpafError
from lpaf_jax.importance import (
    IMPORTANCES,
    TWO_SIDED,
    Importance,
    Moment,
    Subject,
    Weighting,
    measure,
    with_floor,
)

PATH = "bert.encoder.layer.0.output.dense.kernel"
W = np.array([[1.0, -2.0, 3.0], [0.5, -0.5, 4.0]], np.float32)
S = np.array([[2.0, -1.0, 6.0], [8.0, 0.0, 1.0]], np.float32)
M = np.array([[True, True, True], [False, False, True]])

# What the entries are in proportion to.
RAW = {
    "score": np.array([[2, 0, 6], [0, 0, 1]]),
    "mask": np.array([[1, 1, 1], [0, 0, 1]]),
    "magnitude": np.array([[1, 2, 3], [0, 0, 4]]),
    "adam": np.array([[4, 1, 36], [0, 0, 1]]),
}


def subject(scores: Any = S, masks: Any = M, **other: Any) -> Subject:
    given = {
        "model": nnx.Module(),
        "weights": {PATH: jnp.asarray(W)},
        "scores": {PATH: jnp.asarray(scores)},
        "masks": {PATH: jnp.asarray(masks)},
        "second_moments": {PATH: jnp.square(jnp.asarray(scores))},
        "batches": lambda count=None: [],
        "loss": lambda outputs, batch: jnp.float32(0),
    }
    return Subject(**{**given, **other})


def entries(kind: str, floor: float = 0.0, **given: Any) -> np.ndarray:
    weighting = measure(IMPORTANCES[kind], subject(**given), floor)[PATH]
    assert weighting.left is weighting.right is weighting.mean is None
    return np.asarray(weighting.entries)


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_each_kind(kind: str, floor: float) -> None:
    found = entries(kind, floor)
    np.testing.assert_allclose(found, RAW[kind] / RAW[kind].mean() + floor, rtol=1e-6)
    assert found.mean() == pytest.approx(1 + floor)
    np.testing.assert_array_equal(found[~M], np.float32(floor))  # pruned: the floor alone


def test_every_kind_of_entries_is_tested() -> None:
    given = {
        name
        for name, each in IMPORTANCES.items()
        # Not what the example of another test has registered.
        if "entries" in each.gives and each.of_model.__module__.startswith("lpaf_jax.")
    }
    assert given <= {*RAW, "fisher"}  # whose own file has it


def test_none_gives_nothing_to_weigh_by() -> None:
    assert measure(IMPORTANCES["none"], subject(), 0.1) == {PATH: Weighting()}


def test_compiles() -> None:
    raw = Weighting(jnp.asarray(RAW["score"], jnp.float32))
    found = jax.jit(partial(with_floor, floor=0.1))(raw).entries
    np.testing.assert_allclose(found, entries("score", 0.1), rtol=1e-6)


def test_scale_does_not_matter() -> None:
    once, scaled = (entries("score", 0.1, scores=c * S) for c in (1, 1e-6))
    np.testing.assert_allclose(once, scaled, rtol=1e-5)


@pytest.mark.parametrize("scores", [np.zeros_like(S), -np.abs(S)], ids=["zero", "negative"])
def test_without_a_positive_score_all_count_the_same(scores: np.ndarray) -> None:
    np.testing.assert_array_equal(entries("score", 0.25, scores=scores), np.full(W.shape, 1.25))


def test_nan_is_not_taken_for_the_absence_of_scores() -> None:
    scores = S.copy()
    scores[0, 0] = np.nan
    assert np.isnan(entries("score", 0.1, scores=scores)).any()


@pytest.mark.parametrize("kind", RAW)
def test_nothing_kept(kind: str) -> None:
    np.testing.assert_array_equal(entries(kind, masks=np.zeros_like(M)), np.ones_like(W))


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30, 4e37])
def test_scores_near_the_ends_of_float32(scale: float) -> None:
    """The sum of the largest overflows."""
    found = entries("score", 0.1, scores=np.float32(scale) * S)
    np.testing.assert_allclose(found, entries("score", 0.1), rtol=1e-4)


@pytest.mark.parametrize("kind", ["score", "mask", "magnitude"])
def test_a_matrix_that_was_not_pruned_is_weighed_whole(kind: str) -> None:
    raw = {"score": np.maximum(S, 0), "mask": np.ones_like(W), "magnitude": np.abs(W)}[kind]
    found = measure(IMPORTANCES[kind], subject()._replace(masks={}))[PATH]
    np.testing.assert_allclose(found.entries, raw / raw.mean(), rtol=1e-6)


def test_what_an_importance_needs_and_is_not_there() -> None:
    for name, each in IMPORTANCES.items():
        if "loss" in each.needs:
            with pytest.raises(LpafError, match=f"importance {name} needs gradients"):
                measure(each, subject(loss=None))
    with pytest.raises(LpafError, match="adam comes from pruning: use a recipe that prunes"):
        measure(IMPORTANCES["adam"], subject()._replace(masks={}))


def test_metrics_have_no_floor_and_inputs_add_to_what_the_model_says() -> None:
    right = Weighting(right=jnp.eye(3))
    assert TWO_SIDED.of_inputs is not None
    both = TWO_SIDED.of_inputs(right, Moment(jnp.eye(2), jnp.zeros(2), 7))
    assert both.right is right.right
    np.testing.assert_allclose(both.left, np.eye(2), rtol=1e-6)
    assert with_floor(both, 0.1) == both


def test_one_that_is_registered_nowhere_serves_as_well() -> None:
    raw = {PATH: Weighting(entries=jnp.asarray(RAW["mask"], jnp.float32))}
    own = Importance("own", "", frozenset({"entries"}), of_model=lambda subject: raw)
    found = measure(own, subject(), 0.1)[PATH].entries
    np.testing.assert_array_equal(found, entries("mask", 0.1))
