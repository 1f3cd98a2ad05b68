"""How good a classifier is, and how sure we can be of it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal


def wilson_interval(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),    p = correct / n

    Unlike the normal approximation it stays inside [0, 1] and holds near 0 and 1.

    Raises:
        ValueError: n is not positive or `correct` is outside 0..n.

    References:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"need 0 <= correct <= n and n > 0, got {correct} of {n}")
    p = correct / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def classification_metrics(
    labels: np.ndarray, predictions: np.ndarray, label_names: Sequence[str]
) -> dict[str, Any]:
    """Accuracy with its 95 % interval, and precision, recall and F1 of each class.

    Args:
        labels: (n,) true classes as positions in `label_names`.
        predictions: (n,) predicted classes.
        label_names: the names of the classes.

    Returns:
        A dict ready for JSON: accuracy, correct, n, interval95 [low, high], per_class
        {name: {precision, recall, f1, n}}. A ratio without a denominator (a class that was never
        predicted, or is not in the data) is 0, as in scikit-learn.

    Raises:
        ValueError: no examples, or labels and predictions of different lengths.
    """
    labels = np.asarray(labels)
    predictions = np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} do not match")
    n = labels.size
    correct = int(np.sum(labels == predictions))
    low, high = wilson_interval(correct, n)
    return {
        "accuracy": correct / n,
        "correct": correct,
        "n": n,
        "interval95": [low, high],
        "per_class": {
            name: _class_metrics(labels == i, predictions == i)
            for i, name in enumerate(label_names)
        },
    }


def compare_paired(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Whether two models that answered the same examples differ: McNemar's exact test.

    Examples that both answer alike say nothing. If the models were equally good, each of the
    `b + c` others would fall to one side or the other like a coin:

        p = min(1, 2 · P(X ≤ min(b, c))),    X ~ Binomial(b + c, ½)

    Args:
        first, second: (n,) whether each model is right on each example.

    Returns:
        A dict ready for JSON: `dense_only` b and `final_only` c, the examples that the first and
        the second model alone have right, and `p`.

    References:
        Q. McNemar, Note on the sampling error of the difference between correlated proportions or
        percentages, 1947.
    """
    b, c = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    # Whole numbers to the end: 2^-(b + c) is no float from some 1,000 examples on.
    p = min(1.0, 2 * tail / 2 ** (b + c))
    return {"dense_only": b, "final_only": c, "p": p}


def mean_kl(first: np.ndarray, second: np.ndarray) -> float:
    """Mean of `KL(p‖q) = Σ_c p_c (log p_c − log q_c)` in nats, how far answers q are from p.

    Args:
        first, second: (n, classes), the logits of p and of q.
    """
    log_p, log_q = (_log_softmax(x.astype(np.float64)) for x in (first, second))
    return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def sign_flip(differences: np.ndarray) -> float:
    """Probability that `|Σ ± |d_i||`, every sign a fair coin, is at least `|Σ d_i|`.

    The exact test of whether paired differences are 0 in the mean. With d the difference of right
    answers to each example, it is McNemar's test where each has one answer, and with those of
    several seeds summed it takes the answers to one example for what they are: not independent.

    Args:
        differences: (n,) whole numbers.

    Cost: O(s²) with s = Σ|d_i|, at worst.

    References:
        R. A. Fisher, The Design of Experiments, 1935, section 21.
    """
    sizes = np.abs(differences).astype(np.int64)
    total, observed = int(sizes.sum()), abs(int(np.sum(differences)))
    chance = np.ones(1)  # of Σ ± |d_i| = 2 i − total
    for size in sizes[sizes > 0]:
        spread = np.zeros(len(chance) + size)
        spread[: len(chance)] += chance / 2
        spread[size:] += chance / 2
        chance = spread
    sums = 2 * np.arange(len(chance)) - total
    return float(min(1.0, chance[np.abs(sums) >= observed].sum()))


def _class_metrics(actual: np.ndarray, predicted: np.ndarray) -> dict[str, float | int]:
    hit = int(np.sum(actual & predicted))
    n, n_predicted = int(np.sum(actual)), int(np.sum(predicted))
    return {
        "precision": hit / n_predicted if n_predicted else 0.0,
        "recall": hit / n if n else 0.0,
        "f1": 2 * hit / (n + n_predicted) if n + n_predicted else 0.0,
        "n": n,
    }
