"""AA-SVD: what a layer is given is not what it was given in the dense model."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("aa-svd")
def aa_svd() -> Recipe:
    """Minimise E‖x W − x̂ A B‖², x a layer's inputs in the dense model, x̂ in the compressed one.

    AA-SVD, 2026. Factorizes one block after another; only for a decoder without a task.
    """
    return Recipe(
        FineTune(), Factorize(importance="shifted", solver="shifted", ranks="share"), Tune()
    )
