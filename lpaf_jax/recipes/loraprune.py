"""Structured pruning of heads and channels, by what adapters say of gradients."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import FineTune, PruneGroups, Tune


@register("loraprune")
def loraprune() -> Recipe:
    """Drop the heads and channels g of least Σ_{(i,j) ∈ g} |ĝ_ij W_ij|, ĝ = A ∇B + ∇A B.

    Adapters A, B are trained meanwhile, so no gradient of W is ever made. Unless `--spare-ends` is
    given, as many go in every block: of Llama and its kin what is left is an ordinary smaller
    model. Zhang et al., 2024, who spare the ends and tune no further.
    """
    return Recipe(FineTune(), PruneGroups(), Tune())
