import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lpaf_jax.data import (
    classification_metrics,
    matthews_correlation,
    pearson,
    spearman,
    task_metrics,
)


def from_confusion(confusion):
    confusion = np.array(confusion)
    labels = np.repeat(np.arange(len(confusion)), confusion.sum(1))
    return labels, np.concatenate([np.repeat(np.arange(len(confusion)), row) for row in confusion])


@pytest.mark.parametrize("counts", [(6, 1, 2, 3), (0, 5, 4, 0), (9, 0, 0, 4), (40000, 9, 7, 52000)])
def test_mcc_of_two_classes_is_the_phi_coefficient(counts):
    tn, fp, fn, tp = counts
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    labels, predictions = from_confusion([[tn, fp], [fn, tp]])
    assert matthews_correlation(labels, predictions) == pytest.approx(expected, abs=1e-12)


def test_mcc_of_three_classes_is_the_correlation_of_their_indicators():
    labels, predictions = from_confusion([[5, 1, 0], [2, 3, 1], [1, 0, 4]])
    x, y = (np.eye(3)[side] - np.eye(3)[side].mean(0) for side in (labels, predictions))
    expected = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    assert matthews_correlation(labels, predictions) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("confusion", [[[0, 4], [0, 6]], [[0, 0], [3, 7]], [[5, 0], [0, 0]]])
def test_mcc_of_one_class_alone_is_zero(confusion):
    assert matthews_correlation(*from_confusion(confusion)) == 0.0


values = st.lists(
    st.tuples(st.integers(0, 6), st.integers(-20, 20)), min_size=3, max_size=60
).filter(lambda rows: all(len({row[i] for row in rows}) > 1 for i in (0, 1)))


@settings(max_examples=100, deadline=None)
@given(values)
def test_correlations_are_scipys_with_ties(rows):
    x, y = np.float32([a / 2 for a, _ in rows]), np.float32([b / 3 for _, b in rows])
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x.astype(float), y.astype(float))[0])
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)


def test_ties_share_their_mean_rank():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 1 - 6 Σd² / (n³ - n) does not hold with ties
    assert spearman([0, 1, 1, 2], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_a_constant_prediction_correlates_with_nothing(correlation):
    labels = np.float32([0, 1.5, 5, 2])
    for constant in (0.0, 0.1, 1e30):
        assert correlation(labels, np.full(4, constant, np.float32)) == 0.0
        assert correlation(np.full(4, constant), labels) == 0.0
    # of one value but for a rounding: not constant, and well inside float64
    assert correlation(labels, np.float32(7) + 1e-6 * labels) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_what_cannot_be_correlated_is_refused(correlation):
    with pytest.raises(ValueError, match="not all finite"):
        correlation([1.0, 2.0], [1.0, np.nan])
    for pair in (([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])):
        with pytest.raises(ValueError, match="do not match"):
            correlation(*pair)


def test_a_classification_keeps_its_figures_and_gains_the_official_ones():
    labels, predictions = from_confusion([[5, 1], [2, 4]])
    names = ["not_equivalent", "equivalent"]
    plain = classification_metrics(labels, predictions, names)
    found = task_metrics(("f1", "accuracy"), labels, predictions, names)
    assert found == plain | {"f1": pytest.approx(8 / 11), "primary": "f1"}
    found = task_metrics(("mcc", "accuracy"), labels, predictions, names)
    assert found["mcc"] == pytest.approx((20 - 2) / math.sqrt(5 * 6 * 6 * 7))
    assert json.loads(json.dumps(found)) == found
    assert task_metrics(("accuracy",), labels, predictions, names) == plain | {
        "primary": "accuracy"
    }


def test_a_regression_has_its_correlations_alone():
    labels, predictions = np.float32([0, 1, 3, 5]), np.float32([1, 0, 4, 4.5])
    found = task_metrics(("pearson", "spearman"), labels, predictions, [])
    assert found == {
        "n": 4,
        "pearson": pytest.approx(stats.pearsonr(labels, predictions)[0]),
        "spearman": pytest.approx(0.8),
        "primary": "pearson",
    }
    assert json.loads(json.dumps(found)) == found
