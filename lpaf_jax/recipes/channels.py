"""Fewer channels and factors of the rest, where the loss depends on them least."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("channels")
def channels() -> Recipe:
    """Drop channels, factorize queries and keys: min tr L(W − V)R(W − V)ᵀ over both at once.

    Of a decoder without a task. Which channels go, and how the others make up for them, is Optimal
    Brain Surgeon on whole channels, as in ZipLM (Kurtić et al., 2023), with the metric R of output
    gradients; those of values in the basis of MoDeGPT (Lin et al., 2024); the rest as in kfac-svd.
    One budget is shared out over all, by the loss.
    """
    return Recipe(
        FineTune(),
        Factorize(importance="two-sided", solver="metric", ranks="loss", channels="all"),
        Tune(),
    )
