"""Fewer feed-forward channels and factors of the rest, where the loss depends on them least."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("channels")
def channels() -> Recipe:
    """Drop feed-forward channels, factorize attention: min tr L(W − V)R(W − V)ᵀ over both at once.

    Of a decoder without a task. Which channels go, and how the others make up for them, is Optimal
    Brain Surgeon on whole channels, as in ZipLM (Kurtić et al., 2023), with the metric R of output
    gradients; attention is as in kfac-svd. One budget is shared out over both, by the loss.
    """
    return Recipe(
        FineTune(),
        Factorize(importance="two-sided", solver="metric", ranks="loss", feed_forward="channels"),
        Tune(),
    )
