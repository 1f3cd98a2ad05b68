"""The covariance of a layer's inputs as an importance, with their mean."""

import jax.numpy as jnp

from lpaf_jax.importance.activations import Moment
from lpaf_jax.importance.base import Importance, Weighting, register_importance


def _centred(weighting: Weighting, moment: Moment) -> Weighting:
    second, mean = moment.second, moment.mean
    return weighting._replace(left=second - jnp.outer(mean, mean), mean=mean)


register_importance(
    Importance(
        "centred",
        "to minimise the change of each layer's centred outputs on the data",
        frozenset({"left", "mean"}),
        frozenset({"inputs"}),
        of_inputs=_centred,
        source="L = E[xᵀx] − E[x]ᵀE[x]; Kaushal et al., LORD, 2023",
    )
)
