"""The singular values of a matrix in units of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.importance import Weighting
from lpaf_jax.linalg.scaling import exponent, from_unit, shift, to_unit


def loss_spectrum(w: Array, weighting: Weighting) -> np.ndarray:
    """Singular values of `L^½ W R^½`, in falling order.

    With `L = E[xᵀx]` and `R = E[gᵀg]`, `½ Σ_{j>k} s_j²` is about what the loss rises by where the
    matrix is cut to rank k. So they are in one unit for all matrices of a model: normalised for
    each, they would say nothing of how much a matrix matters.

    Args:
        w: (m, n). weighting: its `left` and `right`, vectors or matrices; None is the identity.

    Cost: an eigendecomposition of each metric, and the singular values of W.
    """
    found = np.asarray(_spectrum(w, weighting.left, weighting.right), np.float64)
    return np.maximum.accumulate(np.maximum(found, 0)[::-1])[::-1]


@jax.jit
def _spectrum(w: Array, left: Array | None, right: Array | None) -> Array:
    unit = exponent(w)
    rooted = to_unit(w, unit)
    for metric, turned in ((left, False), (right, True)):
        if metric is None:
            continue
        of_metric = exponent(metric)
        # An even power of two, whose root is one, too.
        of_metric = (of_metric >> 1) << 1
        root = _root(to_unit(metric, of_metric))
        unit = unit + (of_metric >> 1)
        rooted = _applied(root, rooted.T).T if turned else _applied(root, rooted)
    return from_unit(jnp.linalg.svd(rooted, compute_uv=False), unit)


def _root(metric: Array) -> Array:
    """T with TᵀT = M: a vector of roots, or `√S Qᵀ` of M with its diagonal near 1, scaled back.

    Scaled, a massive channel does not hide in its rounding what the others hold.
    """
    if metric.ndim == 1:
        return jnp.sqrt(jnp.maximum(metric, 0))
    e = exponent(jnp.diagonal(metric)[:, None], axis=1)[:, 0] >> 1
    scaled = shift(shift(metric, -e[:, None]), -e[None, :])
    values, vectors = jnp.linalg.eigh((scaled + scaled.T) / 2)
    return shift(jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T, e[None, :])


def _applied(root: Array, x: Array) -> Array:
    return root[:, None] * x if root.ndim == 1 else root @ x
