"""AA-SVD: what a layer is given is not what it was given in the dense model."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("aa-svd")
def aa_svd() -> Recipe:
    """Minimise E‖x W − x̂ A B‖², x the inputs in the dense model and x̂ the layer's own.

    AA-SVD, 2026. Of a decoder without a task, whose blocks are cut one after the other.
    """
    return Recipe(
        FineTune(), Factorize(importance="shifted", solver="shifted", ranks="share"), Tune()
    )
