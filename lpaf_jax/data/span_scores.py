"""Exact match and F1 of answers, as the official scripts of SQuAD v1.1 and v2.0 define them.

P. Rajpurkar et al., SQuAD: 100,000+ questions for machine comprehension of text, 2016, and Know
what you don't know: unanswerable questions for SQuAD, 2018.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """The text in lower case, without ASCII punctuation, then without articles and extra space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if the normalised texts are the same, else 0."""
    return float(normalise_answer(prediction) == normalise_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """The harmonic mean of precision and recall of the words of the normalised prediction.

    Words are counted as often as they occur. 0 if no word is shared, so also between empty texts.
    """
    predicted, true = normalise_answer(prediction).split(), normalise_answer(answer).split()
    shared = (Counter(predicted) & Counter(true)).total()
    return 2 * shared / (len(predicted) + len(true)) if shared else 0.0


def span_metrics(
    answers: Sequence[Sequence[str]],
    predictions: Sequence[str],
    no_answer: Sequence[float] | None = None,
    threshold: float = 0.0,
) -> dict[str, Any]:
    """Exact match and F1 as shares, where the official scripts print percent.

    A prediction counts by the answer that suits it best. In v2.0, answers that are nothing but
    articles and punctuation do not count; a question without an answer is right, in both figures,
    if none is given.

    Args:
        answers: for each question all right answers; in v2.0 none if it has no answer.
        predictions: the best span for each question; in v2.0 also where none may be the answer:
            the threshold decides.
        no_answer: in v2.0 the score of having no answer, any number that grows with it (the
            official `na_prob`; here `Found.no_answer`). None means v1.1.
        threshold: no answer is given where `no_answer` exceeds it.

    Returns:
        A dict ready for JSON: "exact", "f1", "n" and "primary"; in v2.0 also HasAns_exact,
        HasAns_f1, HasAns_total and NoAns_... for questions with and without an answer, and
        best_exact, best_exact_thresh, best_f1, best_f1_thresh: what the best threshold on these
        very questions would give.

    Raises:
        ValueError: no questions, or sequences of different lengths.
    """
    n = len(answers)
    if not n or len(predictions) != n or (no_answer is not None and len(no_answer) != n):
        raise ValueError(f"{len(predictions)} predictions do not match {n} questions")
    if no_answer is None:
        exact, f1 = _scores(answers, predictions)
        return {**_means(exact, f1), "n": n, "primary": "f1"}
    right = [[text for text in texts if normalise_answer(text)] for texts in answers]
    exact, f1 = _scores([texts or [""] for texts in right], predictions)
    f1 = np.where([not texts for texts in right], exact, f1)
    answered = np.array([len(texts) > 0 for texts in answers])
    score = np.asarray(no_answer, dtype=np.float64)
    given = score <= threshold
    final = [np.where(given, raw, ~answered) for raw in (exact, f1)]
    found = {**_means(*final), "n": n, "primary": "f1", "threshold": threshold}
    for name, part in (("HasAns", answered), ("NoAns", ~answered)):
        if part.any():
            means = _means(*(values[part] for values in final)) | {"total": int(part.sum())}
            found |= {f"{name}_{key}": value for key, value in means.items()}
    empty = np.array([not text for text in predictions])
    for name, raw in (("exact", exact), ("f1", f1)):
        found |= _best_threshold(name, raw, answered, empty, score)
    return found


def _scores(
    answers: Sequence[Sequence[str]], predictions: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    both = list(zip(predictions, answers, strict=True))
    exact = [max(exact_match(given, text) for text in texts) for given, texts in both]
    f1 = [max(token_f1(given, text) for text in texts) for given, texts in both]
    return np.array(exact), np.array(f1)


def _means(exact: np.ndarray, f1: np.ndarray) -> dict[str, Any]:
    return {"exact": float(exact.mean()), "f1": float(f1.mean())}


def _best_threshold(
    name: str, raw: np.ndarray, answered: np.ndarray, empty: np.ndarray, score: np.ndarray
) -> dict[str, float]:
    """Give no answer at all, then one more after another, the surest first; keep the best."""
    order = np.argsort(score, kind="stable")
    gain = np.where(answered, raw, np.where(empty, 0.0, -1.0))[order]
    total = np.concatenate([[0.0], np.cumsum(gain)]) + np.sum(~answered)
    best = int(total.argmax())
    return {
        f"best_{name}": float(total[best] / len(raw)),
        # As the official script has it where no answer at all is best.
        f"best_{name}_thresh": float(score[order[best - 1]]) if best else 0.0,
    }
