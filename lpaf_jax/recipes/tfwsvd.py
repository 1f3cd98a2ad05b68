"""TFWSVD: every entry weighted by its own Fisher information."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("tfwsvd")
def tfwsvd() -> Recipe:
    """Minimise Σ_ij I_ij (W − AB)²_ij + λ(‖A‖² + ‖B‖²), I_ij = E[(∂L/∂W_ij)²] + floor.

    Hua et al., 2022; solved exactly; λ is --ridge.
    """
    return Recipe(FineTune(), Factorize(importance="fisher", solver="elementwise"), Tune())
