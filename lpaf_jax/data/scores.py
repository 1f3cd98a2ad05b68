"""The official metrics of tasks: what GLUE reports for each, from labels and predictions.

A. Wang et al., GLUE: A multi-task benchmark and analysis platform for natural language
understanding, 2019.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lpaf_jax.data.metrics import classification_metrics


def task_metrics(
    metrics: Sequence[str],
    labels: np.ndarray,
    predictions: np.ndarray,
    label_names: Sequence[str],
) -> dict[str, Any]:
    """The official metrics of a classification or a regression, ready for JSON.

    A classification keeps everything of `classification_metrics` and gains "mcc", and "f1" of the
    second class (of what is looked for: equivalent, duplicate), where the task names them. A
    regression has "pearson", "spearman" and "n". "primary" says by which key models are compared.

    Args:
        metrics: the task's own (`Task.metrics`), the primary one first.
        labels: (n,) true classes as positions in `label_names`, or true values.
        predictions: (n,) predicted classes, or predicted values.
        label_names: the names of the classes; empty for a regression.

    Raises:
        ValueError: no examples, arrays that do not match, or values that are not finite.
    """
    if not label_names:
        found: dict[str, Any] = {"n": int(np.size(labels))}
    else:
        found = classification_metrics(labels, predictions, label_names)
    for name in metrics:
        if name == "f1":
            found["f1"] = found["per_class"][label_names[1]]["f1"]
        elif name in _SCORES:
            found[name] = _SCORES[name](labels, predictions)
    return found | {"primary": metrics[0]}


def matthews_correlation(labels: np.ndarray, predictions: np.ndarray) -> float:
    """The correlation of two assignments to classes, in [-1, 1].

        R = (c n − Σ_k t_k p_k) / √((n² − Σ_k p_k²) (n² − Σ_k t_k²))

    with c hits among n examples, t_k true and p_k predicted examples of class k; for two classes
    the phi coefficient of the confusion matrix. Where either side is all one class the denominator
    is 0, and so is the value, as in scikit-learn, which GLUE names for CoLA.

    References:
        J. Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient,
        2004.
    """
    labels, predictions = _matching(labels, predictions)
    classes = np.union1d(labels, predictions)
    true, predicted = ((side[:, None] == classes).sum(0).tolist() for side in (labels, predictions))
    n, hits = labels.size, int(np.sum(labels == predictions))
    # Whole numbers until the root: the products exceed 2⁵³ from some 10,000 examples on.
    covariance = hits * n - sum(t * p for t, p in zip(true, predicted, strict=True))
    spread = [n * n - sum(count * count for count in side) for side in (true, predicted)]
    return float(covariance / np.sqrt(float(spread[0] * spread[1]))) if all(spread) else 0.0


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's correlation of values, in float64.

    Where either side is constant it is undefined: scipy, which GLUE uses, then warns and gives
    NaN. Here it is 0, as for Matthews' above: such predictions say nothing about the labels, NaN is
    no JSON, and a NaN compares as neither better nor worse.

    Raises:
        ValueError: no values, arrays that do not match, or values that are not finite.
    """
    x, y = (side.astype(np.float64) for side in _matching(labels, predictions))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("values to correlate are not all finite")
    # Compared, not subtracted: the mean of equal numbers may be off by a rounding.
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    # Each side scaled by itself, so that no product of small numbers falls to 0.
    r = (x / np.linalg.norm(x)) @ (y / np.linalg.norm(y))
    return float(np.clip(r, -1.0, 1.0))


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank.

    As `pearson`, it is 0 where either side is constant.
    """
    labels, predictions = _matching(labels, predictions)
    if not (np.isfinite(labels).all() and np.isfinite(predictions).all()):
        raise ValueError("values to correlate are not all finite")
    return pearson(_ranks(labels), _ranks(predictions))


_SCORES = {"mcc": matthews_correlation, "pearson": pearson, "spearman": spearman}


def _matching(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape or not labels.size:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} do not match")
    return labels, predictions


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
