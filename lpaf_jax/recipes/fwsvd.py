"""FWSVD: rows weighted by their Fisher information."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("fwsvd")
def fwsvd() -> Recipe:
    """Minimise Σ_ij r_i (W − AB)²_ij, r_i = Σ_j E[(∂L/∂W_ij)²] + floor. Hsu et al., 2022."""
    return Recipe(FineTune(), Factorize(importance="fisher", solver="row"), Tune())
