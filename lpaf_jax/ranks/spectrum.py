"""The singular values of a matrix in units of the loss."""

from typing import Any

import numpy as np
from jax import Array

from lpaf_jax.importance import Weighting


def loss_spectrum(w: Array, weighting: Weighting) -> np.ndarray:
    """Singular values of `L^½ W R^½`, in falling order.

    With `L = E[xᵀx]` and `R = E[gᵀg]`, `½ Σ_{j>k} s_j²` is about what the loss rises by where the
    matrix is cut to rank k. So they are in one unit for all matrices of a model: normalised for
    each, they would say nothing of how much a matrix matters.

    They are the roots of the eigenvalues of the Gram matrix on the smaller side, `Tᵀ W R Wᵀ T` with
    `L = T Tᵀ` for m ≤ n: in float64, where squares leave 8 digits of the largest.

    Args:
        w: (m, n). weighting: its `left` and `right`, vectors or matrices; None is the identity.

    Cost: for m ≤ n, `2 m n (m + n)` FLOP of products, and a Cholesky decomposition and the
    eigenvalues of an (m, m), on the host.
    """
    wide, left, right = _wide(w), _wide(weighting.left), _wide(weighting.right)
    if wide.shape[0] > wide.shape[1]:
        wide, left, right = wide.T, right, left
    gram = _within(wide.T, right)
    if left is not None:
        root = _root(left)
        gram = _within(root, gram) if root.ndim == 2 else root[:, None] * gram * root
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))


def _wide(x: Any) -> Any:
    return None if x is None else np.asarray(x, np.float64)


def _within(x: np.ndarray, metric: np.ndarray | None) -> np.ndarray:
    """`xᵀ M x`."""
    if metric is None:
        found = x.T @ x
    else:
        found = x.T @ (metric[:, None] * x if metric.ndim == 1 else metric @ x)
    return (found + found.T) / 2


def _root(metric: np.ndarray) -> np.ndarray:
    """T with `T Tᵀ = M`; of a vector the roots of its entries."""
    if metric.ndim == 1:
        return np.sqrt(np.maximum(metric, 0))
    symmetric = (metric + metric.T) / 2
    try:
        return np.linalg.cholesky(symmetric)
    except np.linalg.LinAlgError:  # it is singular
        values, vectors = np.linalg.eigh(symmetric)
        return vectors * np.sqrt(np.maximum(values, 0))
