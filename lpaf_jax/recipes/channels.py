"""Fewer channels and factors of the rest, where the loss depends on them least."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("channels")
def channels() -> Recipe:
    """Drop channels, factorize queries and keys: min tr L(W − V)R(W − V)ᵀ over both at once.

    L = E[xᵀx] of a matrix's inputs and R = E[gᵀg] of the gradients at its outputs; rows of V are
    zero for removed channels, and V = AB for factors, as in kfac-svd. Only for a decoder without a
    task. Channels are chosen, and the others adjusted, by Optimal Brain Surgeon on whole channels,
    as in ZipLM (Kurtić et al., 2023); for values, in the basis of MoDeGPT (Lin et al., 2024). One
    budget is divided among all of them according to the loss.
    """
    return Recipe(
        FineTune(),
        Factorize(importance="two-sided", solver="metric", ranks="loss", channels="all"),
        Tune(),
    )
