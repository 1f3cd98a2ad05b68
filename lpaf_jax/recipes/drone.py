"""DRONE, and the optimum of SVD-LLM: the outputs of a layer change least."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("drone")
def drone() -> Recipe:
    """Minimise E‖x(W − AB)‖² over the data's inputs x. Chen et al., 2021; Wang et al., 2024."""
    return Recipe(
        FineTune(), Factorize(importance="activations", solver="metric", ranks="share"), Tune()
    )
