"""The answers of the closed forms, in numpy's float64."""

from typing import Any, NamedTuple

import numpy as np

Array = Any


class Statistics(NamedTuple):
    """What is known of a matrix: moments of inputs and of output gradients, and importance."""

    second: Array
    mean: Array
    gradients: Array
    fisher: Array
    scores: Array


def root(metric: Array) -> tuple[Array, Array]:
    """T with TᵀT = M, and its inverse."""
    if metric.ndim == 1:
        metric = np.diag(metric)
    values, vectors = np.linalg.eigh((metric + metric.T) / 2)
    values = np.sqrt(np.maximum(values, values.max() * 1e-7))
    return values[:, None] * vectors.T, vectors / values


def nearest(w: Array, rank: int, left: Array | None = None, right: Array | None = None) -> Array:
    """argmin of rank k of `tr L (W − X) R (W − X)ᵀ`."""
    m, n = w.shape
    to_left, from_left = root(np.ones(m) if left is None else left)
    to_right, from_right = root(np.ones(n) if right is None else right)
    u, s, vt = np.linalg.svd(to_left @ w @ to_right.T, full_matrices=False)
    return from_left @ (u[:, :rank] * s[:rank]) @ vt[:rank] @ from_right.T


def shrunk(metric: Array, share: float) -> Array:
    """Some of the metric made round."""
    n = len(metric)
    return (1 - share) * metric + share * np.trace(metric) / n * np.eye(n)


def answer(recipe: str, w: Array, of: Statistics, rank: int) -> tuple[Array, Array | None]:
    """The product AB that a recipe makes of W, and what it adds to the bias."""
    w, (second, mean, gradients, fisher, scores) = (
        np.asarray(w, np.float64),
        (np.asarray(x, np.float64) for x in of),
    )
    if recipe == "afm":
        product = nearest(w, rank, second - np.outer(mean, mean))
        return product, mean @ (w - product)
    metrics: dict[str, tuple[Array | None, Array | None]] = {
        "svd": (None, None),
        "svd-ft": (None, None),
        "fwsvd": ((fisher / fisher.mean() + 0.1).sum(1), None),
        "lpaf": ((scores / scores.mean() + 0.1).sum(1), None),
        "drone": (second, None),
        # Of two streams that are the same.
        "aa-svd": (second, None),
        "awsvd": (np.diag(second), None),
        "lpaf-plus": (shrunk(second, 0.02), shrunk(gradients, 0.1)),
        "kfac-svd": (shrunk(second, 0.02), shrunk(gradients, 0.1)),
        "channels": (shrunk(second, 0.02), shrunk(gradients, 0.1)),
    }
    if recipe not in metrics:
        raise AssertionError(
            f"{recipe}: give its formula here, or name it in NOT_CLOSED of "
            "tests/recipes/test_closed_forms.py"
        )
    return nearest(w, rank, *metrics[recipe]), None
