"""AWSVD: rows weighted by the mean squares of their inputs."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("awsvd")
def awsvd() -> Recipe:
    """Minimise Σ_ij E[x_i²] (W − AB)²_ij, the diagonal of DRONE's problem. Li et al., 2024."""
    return Recipe(
        FineTune(),
        Factorize(importance="activations-diagonal", solver="metric", ranks="share"),
        Tune(),
    )
