"""Prune, then factorize what is left, as LPAF does, without training."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("sparsegpt-svd")
def sparsegpt_svd() -> Recipe:
    """Prune to half by SparseGPT, then factorize what is left as in kfac-svd.

    Of a decoder without a task. The first step of LPAF where nothing is trained, Frantar &
    Alistarh, 2023. What is left of a matrix is the same for every rank: those are shared out by the
    loss of the dense model.
    """
    cut = Factorize(importance="two-sided", solver="metric", ranks="loss", pruned_to=0.5)
    return Recipe(FineTune(), cut, Tune())
