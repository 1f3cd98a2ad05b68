"""LoRAP: factors of attention, and fewer channels of feed-forward layers."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("lorap")
def lorap() -> Recipe:
    """Minimise Σ_ij E[x_i²] (W − AB)²_ij in attention, and drop feed-forward channels by norms.

    Li et al., 2024. Only for a decoder without a task, with separate query, key and value matrices:
    values and outputs keep three times as much as queries and keys. Dropped channels are not
    compensated.
    """
    return Recipe(
        FineTune(),
        Factorize(
            importance="activations-diagonal",
            solver="metric",
            ranks="values-first",
            channels="feed-forward",
            channels_by="norms",
        ),
        Tune(),
    )
