"""ALBERT's embeddings: a narrow table, and a matrix to the width of the model."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("albert")
def albert() -> Recipe:
    """Minimise Σ_v f_v ‖t_v − c_v B‖², t_v the embedding of token v and f_v its frequency.

    Lan et al., 2020, applied to an existing model. With `--params 1`, its default, the layers'
    matrices are unchanged; `--embeddings` adds the same to any other recipe that factorizes.
    """
    cut = Factorize(importance="none", solver="plain", ranks="share", params=1.0, embeddings=128)
    return Recipe(FineTune(), cut, Tune())
