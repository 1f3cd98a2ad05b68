"""Shapeshifter's sums of Kronecker products, from a model that there is."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("shapeshifter")
def shapeshifter() -> Recipe:
    """Minimise ‖W − Σ_t A_t ⊗ B_t‖² over r terms, in the shapes with the fewest parameters; tune.

    Panahi et al., 2021, who train such layers from scratch. At equal size, plain SVD approximates
    trained weights better. The layers save memory but no computation.
    """
    cut = Factorize(importance="none", solver="kronecker", ranks="share")
    return Recipe(FineTune(), cut, Tune())
