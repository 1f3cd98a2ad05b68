"""Fewer feed-forward channels, as many in every block: an ordinary model of another width."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("width-pruning")
def width_pruning() -> Recipe:
    """Drop feed-forward channels: min tr L(W − V)R(W − V)ᵀ, rows of V zero for those that go.

    Of a decoder without a task. As many go in every block, so the result is an ordinary model with
    another width in its config, which needs no code of this package anywhere. Which go, and how the
    others make up for them, is Optimal Brain Surgeon on whole channels, as in ZipLM (Kurtić et al.,
    2023), with the metric R of output gradients.
    """
    cut = Factorize(
        importance="two-sided", solver="metric", ranks="even-channels", channels="feed-forward"
    )
    return Recipe(FineTune(), cut, Tune())
