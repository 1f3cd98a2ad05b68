"""KFAC-SVD: a metric of inputs and one of output gradients."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("kfac-svd")
def kfac_svd() -> Recipe:
    """Minimise tr L(W − AB)R(W − AB)ᵀ, L = E[xᵀx], R = E[gᵀg], with ranks by the loss.

    OBD-LLM, 2026; the two-sided metric is that of K-FAC, Martens & Grosse, 2015.
    """
    return Recipe(
        FineTune(), Factorize(importance="two-sided", solver="metric", ranks="loss"), Tune()
    )
