"""Fewer feed-forward channels, as many in every block: an ordinary model of another width."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("width-pruning")
def width_pruning() -> Recipe:
    """Drop feed-forward channels: min tr L(W − V)R(W − V)ᵀ, V zero in the dropped rows.

    L = E[xᵀx] of a layer's inner channels and R = E[gᵀg] of the gradients at its outputs. Only for
    a decoder without a task. Every block loses equally many, so the result is an ordinary model
    with another width in its config, which needs no code of this package. Channels are chosen, and
    the others adjusted, by Optimal Brain Surgeon on whole channels, as in ZipLM (Kurtić et al.,
    2023).
    """
    cut = Factorize(
        importance="two-sided", solver="metric", ranks="even-channels", channels="feed-forward"
    )
    return Recipe(FineTune(), cut, Tune())
