"""Prune, then factorize what is left, as LPAF does, without training."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("sparsegpt-svd")
def sparsegpt_svd() -> Recipe:
    """Prune to half with SparseGPT, then factorize the remaining weights as in kfac-svd.

    Only for a decoder without a task. SparseGPT (Frantar & Alistarh, 2023) stands for the first
    step of LPAF without training. Pruning does not depend on the rank, and ranks are set by the
    loss of the dense model.
    """
    cut = Factorize(importance="two-sided", solver="metric", ranks="loss", pruned_to=0.5)
    return Recipe(FineTune(), cut, Tune())
