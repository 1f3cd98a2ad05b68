"""The moments of a layer's inputs beside those of the dense model, as an importance."""

from lpaf_jax.importance.activations import Moment
from lpaf_jax.importance.base import Importance, Weighting, register_importance


def _beside(weighting: Weighting, moment: Moment) -> Weighting:
    return weighting._replace(left=moment.second, cross=moment.cross)


register_importance(
    Importance(
        "shifted",
        "to bring each layer's outputs closest to the dense model's, given its changed inputs",
        frozenset({"left", "cross"}),
        frozenset({"inputs", "streams"}),
        of_inputs=_beside,
        source="L = E[x̂ᵀx̂] and E[x̂ᵀx]; AA-SVD, 2026",
    )
)
