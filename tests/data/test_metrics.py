import json
from itertools import product

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest, entropy

from lpaf_jax.data import (
    classification_metrics,
    compare_paired,
    mean_kl,
    sign_flip,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (1, 3), (1390, 1706), (5, 10)]
)
def test_wilson_interval_is_scipys(correct, n):
    expected = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_what_is_no_proportion(correct, n):
    with pytest.raises(ValueError, match="0 <= correct <= n"):
        wilson_interval(correct, n)


def test_metrics_of_a_confusion_matrix_worked_by_hand():
    #             predicted a  b  c
    confusion = np.array([[5, 1, 0], [2, 3, 0], [1, 0, 0]])
    labels = np.repeat(np.arange(3), confusion.sum(1))
    predictions = np.concatenate([np.repeat(np.arange(3), row) for row in confusion])
    metrics = classification_metrics(labels, predictions, ["a", "b", "c"])
    assert (metrics["correct"], metrics["n"]) == (8, 12)
    assert metrics["accuracy"] == pytest.approx(8 / 12)
    assert metrics["interval95"] == list(wilson_interval(8, 12))
    a, b, c = (metrics["per_class"][name] for name in "abc")
    assert a == pytest.approx({"precision": 5 / 8, "recall": 5 / 6, "f1": 10 / 14, "n": 6})
    assert b == pytest.approx({"precision": 3 / 4, "recall": 3 / 5, "f1": 6 / 9, "n": 5})
    # never predicted: no precision to speak of, counted as 0
    assert c == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 1}


def test_metrics_are_plain_json_whatever_array_type_comes_in():
    metrics = classification_metrics(np.int32([0, 1]), np.int64([0, 0]), ["no", "yes"])
    assert json.loads(json.dumps(metrics)) == metrics


@pytest.mark.parametrize(
    ("labels", "predictions"), [([], []), ([0, 1], [0]), ([[0], [1]], [[0], [1]])]
)
def test_metrics_refuse_arrays_that_do_not_match(labels, predictions):
    with pytest.raises(ValueError, match=r"do not match|n > 0"):
        classification_metrics(np.array(labels), np.array(predictions), ["a", "b"])


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (3, 3), (9, 2), (40, 61), (900, 1000)])
def test_mcnemar_is_the_binomial_test_of_those_that_differ(b, c):
    first = np.array([True] * b + [False] * c + [True, True, False])
    second = np.array([False] * b + [True] * c + [True, True, False])
    found = compare_paired(first, second)
    assert (found["dense_only"], found["final_only"]) == (b, c)
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert found["p"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("differences", [[3, -1, 2, 0, -2, 1], [1, 1, 1], [0, 0], [-3, 2, 2, -1]])
def test_sign_flips_are_those_of_all_signs(differences: list[int]) -> None:
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    expected = np.mean([s >= abs(sum(differences)) for s in sums])
    assert sign_flip(np.array(differences)) == pytest.approx(expected)


def test_sign_flips_of_one_answer_each_are_mcnemars_test() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random(1500) < 0.8, rng.random(1500) < 0.77
    expected = compare_paired(first, second)["p"]
    assert sign_flip(second.astype(int) - first) == pytest.approx(expected)


def test_mean_kl_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 7, 3)) * 20 + 500
    p, q = (np.asarray(softmax(x, axis=-1)) for x in (first, second))
    assert mean_kl(first, second) == pytest.approx(np.mean(entropy(p, q, axis=-1)))
    assert mean_kl(first, first) == 0
