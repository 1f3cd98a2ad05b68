"""LPAF, and what is left of it without each of its three steps."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, MixedTune, Prune, Tune


@register("lpaf")
def lpaf() -> Recipe:
    """Prune by first-order scores S, minimise Σ_ij r_i (W − AB)²_ij, r_i = Σ_j S_ij, tune mixed.

    Ren & Zhu, "Low-Rank Prune-And-Factorize for Language Model Compression", 2024.
    """
    return Recipe(FineTune(), Prune(), Factorize(), MixedTune())


@register("lpaf-without-step-1")
def without_pruning() -> Recipe:
    """LPAF without pruning: the scores are summed with the weights fixed."""
    return Recipe(FineTune(), Factorize(), MixedTune())


@register("lpaf-without-step-2")
def without_weighting() -> Recipe:
    """LPAF with a plain SVD of the pruned model."""
    return Recipe(FineTune(), Prune(), Factorize(importance="none", solver="plain"), MixedTune())


@register("lpaf-without-step-3")
def without_mixing() -> Recipe:
    """LPAF with plain fine-tuning of the factors."""
    return Recipe(FineTune(), Prune(), Factorize(), Tune())
