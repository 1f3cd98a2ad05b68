"""The moments of a layer's inputs beside those of the dense model, as an importance."""

import jax.numpy as jnp

from lpaf_jax.importance.activations import Moment
from lpaf_jax.importance.base import Importance, Weighting, register_importance
from lpaf_jax.importance.gradients import SHRINK_INPUTS, TWO_SIDED, by_inputs


def _beside(weighting: Weighting, moment: Moment) -> Weighting:
    return weighting._replace(left=moment.second, cross=moment.cross)


def _beside_shrunk(weighting: Weighting, moment: Moment) -> Weighting:
    """Both with the same multiple of the identity: where nothing has changed they stay equal."""
    if moment.cross is None:
        return by_inputs(weighting, moment)
    n = len(moment.second)
    usual = jnp.trace(moment.second) / n * jnp.eye(n, dtype=moment.second.dtype)
    left, cross = (
        (1 - SHRINK_INPUTS) * x + SHRINK_INPUTS * usual for x in (moment.second, moment.cross)
    )
    return weighting._replace(left=left, cross=cross)


register_importance(
    Importance(
        "two-sided-shifted",
        "so that the loss changes least, for outputs nearest to those of the dense model",
        frozenset({"left", "right", "cross"}),
        frozenset({"loss", "inputs", "streams"}),
        TWO_SIDED.of_model,
        _beside_shrunk,
    )
)
register_importance(
    Importance(
        "shifted",
        "so that its outputs are nearest to those of the dense model, whatever came before",
        frozenset({"left", "cross"}),
        frozenset({"inputs", "streams"}),
        of_inputs=_beside,
        source="L = E[x̂ᵀx̂] beside E[x̂ᵀx]; AA-SVD, 2026",
    )
)
