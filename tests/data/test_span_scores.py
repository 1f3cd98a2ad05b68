import json

import numpy as np
import pytest

from lpaf_jax.data import exact_match, normalise_answer, span_metrics, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Denver\tBroncos!", "denver broncos"),
        ("a.k.a. an Apple", "aka apple"),  # punctuation goes first: no article is left in "aka"
        ("theatre, Ana and a-b", "theatre ana and ab"),
        ("“the” Café – 東京", "“ ” café – 東京"),  # ASCII punctuation alone is removed
        ("THE", ""),
        ("24–10", "24–10"),
        ("$1,000.50", "100050"),
    ],
)
def test_normalisation_worked_by_hand(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("the Broncos", "Broncos.", 1, 1),
        ("Denver Broncos", "The Denver Broncos of 2015", 0, 2 * 1 * 0.5 / 1.5),
        ("to be or not to be", "to be", 0, 2 * (2 / 6) * 1 / (2 / 6 + 1)),
        ("Carolina", "Denver", 0, 0),
        ("the", "a", 1, 0),  # nothing is left of either: v1.1 counts no shared word
        ("", "Denver", 0, 0),
    ],
)
def test_scores_worked_by_hand(prediction, answer, exact, f1):
    assert exact_match(prediction, answer) == exact
    assert token_f1(prediction, answer) == pytest.approx(f1)


def test_version_1_counts_the_answer_that_suits_best():
    answers = [["Denver", "Denver Broncos"], ["10 February", "February 7, 2016"], ["x"]]
    found = span_metrics(answers, ["the broncos", "February 7 2016", "y"])
    assert found == {
        "exact": pytest.approx(1 / 3),
        "f1": pytest.approx((2 / 3 + 1 + 0) / 3),
        "n": 3,
        "primary": "f1",
    }
    assert json.loads(json.dumps(found)) == found


# question: answers, best span, score of no answer
VERSION_2 = [
    (["Denver"], "Denver", -3.0),  # right if answered
    (["Denver Broncos"], "Broncos", 2.0),  # F1 2/3 if answered
    ([], "nonsense", 1.0),  # right if not answered
    ([], "nonsense", -1.0),
    ([], "", 5.0),  # no span was found at all: right whatever the threshold
    (["the", "Denver"], "Boston", -2.0),  # never right
]


def version_2(threshold):
    answers, predictions, scores = zip(*VERSION_2, strict=True)
    return span_metrics(answers, predictions, scores, threshold)


def test_version_2_worked_by_hand():
    found = version_2(0.0)
    assert found == {
        "exact": pytest.approx((1 + 0 + 1 + 0 + 1 + 0) / 6),
        "f1": pytest.approx(3 / 6),
        "n": 6,
        "primary": "f1",
        "threshold": 0.0,
        "HasAns_exact": pytest.approx(1 / 3),
        "HasAns_f1": pytest.approx(1 / 3),
        "HasAns_total": 3,
        "NoAns_exact": pytest.approx(2 / 3),
        "NoAns_f1": pytest.approx(2 / 3),
        "NoAns_total": 3,
        # all unanswered: 3; answering -3: 4; then -2: 4, -1: 3, 1: 2, 2: 2 (exact) or 2 2/3 (F1)
        "best_exact": pytest.approx(4 / 6),
        "best_exact_thresh": -3.0,
        "best_f1": pytest.approx(4 / 6),
        "best_f1_thresh": -3.0,
    }
    assert json.loads(json.dumps(found)) == found


def test_the_best_threshold_is_the_best_of_all_that_differ():
    found = version_2(0.0)
    scores = [score for _, _, score in VERSION_2]
    for name in ("exact", "f1"):
        assert found[f"best_{name}"] == max(version_2(t)[name] for t in [-99, *scores])
        assert version_2(found[f"best_{name}_thresh"])[name] == found[f"best_{name}"]


def test_answering_nothing_may_be_best():
    found = span_metrics([[], ["x"]], ["wrong", "wrong"], [0.5, 0.7])
    assert (found["best_f1"], found["best_f1_thresh"]) == (0.5, 0.0)


def test_a_question_without_a_span_stays_right_when_it_is_answered():
    found = span_metrics([[], ["x"]], ["", "x"], [-1.0, 0.5])
    assert (found["best_exact"], found["best_exact_thresh"]) == (1.0, 0.5)


def test_a_question_whose_answers_are_all_articles_is_right_with_no_word():
    # of version 2: the filtered list of answers becomes [""], and equal empty texts score 1
    found = span_metrics([["the"], ["x"]], ["an", "x"], [-1.0, -1.0])
    assert (found["exact"], found["f1"]) == (1.0, 1.0)
    found = span_metrics([["the"], ["x"]], ["band", "x"], [-1.0, -1.0])
    assert (found["exact"], found["f1"]) == (0.5, 0.5)


def test_a_question_for_which_no_span_was_found_leaves_no_infinity_behind():
    found = span_metrics([["x"], []], ["", ""], [np.inf, np.inf])
    assert "Infinity" not in json.dumps(found)


def test_only_one_kind_of_question_has_no_figure_of_the_other():
    assert not any(key.startswith("NoAns") for key in span_metrics([["x"]], ["x"], [0.0]))


@pytest.mark.parametrize("sizes", [(0, 0, None), (2, 1, None), (2, 2, 1)])
def test_sequences_that_do_not_match_are_refused(sizes):
    n, given, scored = sizes
    with pytest.raises(ValueError, match="do not match"):
        span_metrics([["x"]] * n, ["x"] * given, None if scored is None else [0.0] * scored)
