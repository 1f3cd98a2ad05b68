"""The second moments of a layer's inputs as an importance."""

from lpaf_jax.importance.activations import Moment
from lpaf_jax.importance.base import Importance, Weighting, register_importance


def _whole(weighting: Weighting, moment: Moment) -> Weighting:
    return weighting._replace(left=moment.second)


register_importance(
    Importance(
        "activations",
        "to minimise the change of each layer's outputs on the data",
        frozenset({"left"}),
        frozenset({"inputs"}),
        of_inputs=_whole,
        source="L = E[xᵀx]; Chen et al., DRONE, 2021; Wang et al., SVD-LLM, 2024",
    )
)
