"""The mean squares of a layer's inputs as an importance: the diagonal of their moments."""

import jax.numpy as jnp

from lpaf_jax.importance.activations import Moment
from lpaf_jax.importance.base import Importance, Weighting, register_importance


def _diagonal(weighting: Weighting, moment: Moment) -> Weighting:
    return weighting._replace(left=jnp.diagonal(moment.second))


register_importance(
    Importance(
        "activations-diagonal",
        "to preserve the rows whose inputs are large on the data",
        frozenset({"left"}),
        frozenset({"inputs"}),
        of_inputs=_diagonal,
        source="L = diag E[xᵀx]; Li et al., LoRAP, 2024",
    )
)
