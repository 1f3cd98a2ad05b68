"""ALBERT's embeddings: a narrow table, and a matrix to the width of the model."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("albert")
def albert() -> Recipe:
    """Minimise Σ_v f_v ‖t_v − c_v B‖² over the token embeddings t_v, f_v how often v occurs.

    Lan et al., 2020, from a model that there is, and not from the start. At `--params 1`, its
    default, the matrices of the layers stay as they are; `--embeddings` does the same with any
    other recipe.
    """
    cut = Factorize(importance="none", solver="plain", ranks="share", params=1.0, embeddings=128)
    return Recipe(FineTune(), cut, Tune())
