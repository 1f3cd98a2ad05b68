"""From what pruning leaves behind to the importance I of every weight."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from lpaf_jax.linalg.scaling import exponent, to_unit

# estimator(weight, score, mask) -> importance before normalisation, all of one shape
Estimator = Callable[[Array, Array, Array], Array]

IMPORTANCES: dict[str, Estimator] = {
    "score": lambda weight, score, mask: jnp.where(mask, jnp.maximum(score, 0.0), 0.0),
    "mask": lambda weight, score, mask: mask.astype(weight.dtype),
    "magnitude": lambda weight, score, mask: jnp.where(mask, jnp.abs(weight), 0.0),
    "none": lambda weight, score, mask: jnp.ones_like(weight),
}


def importance(kind: str, weight: Array, score: Array, mask: Array, floor: float) -> Array:
    """Importance of the entries of one matrix, of mean 1 before the floor is added.

    With S the first-order score and M the mask of the pruned W,

        score      I = max(S, 0) ⊙ M        (the paper's; it is silent about negative scores)
        mask       I = M
        magnitude  I = |W| ⊙ M
        none       I = 1

    Where that leaves no entry at all above 0, I = 1: a matrix without scores is factorized
    unweighted.

    Args:
        kind: one of `IMPORTANCES`.
        weight, score, mask: W, S and M, all (m, n).
        floor: added to every entry, as a share of the mean. Without one a factorization is free to
            be anything where I = 0, though a pruned entry should stay near 0.
    """
    raw = IMPORTANCES[kind](weight, score, mask)
    raw = to_unit(raw, exponent(raw))  # the sum of large or small scores leaves float32
    mean = raw.mean()
    # Compared with 0, so that a NaN in the scores is not taken for their absence.
    return jnp.where(mean == 0, 1.0, raw / jnp.where(mean == 0, 1.0, mean)) + floor
