"""Shapeshifter's sums of Kronecker products, from a model that there is."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("shapeshifter")
def shapeshifter() -> Recipe:
    """Minimise ‖W − Σ_t A_t ⊗ B_t‖² over r terms, of the shapes with the fewest numbers; then tune.

    Panahi et al., 2021, who train such layers from the start. At equal size plain SVD keeps more of
    trained weights, and the layers compute no less than dense ones: this is for memory alone.
    """
    cut = Factorize(importance="none", solver="kronecker", ranks="share")
    return Recipe(FineTune(), cut, Tune())
