"""TensorGPT's embeddings: every token a tensor train."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("tensorgpt")
def tensorgpt() -> Recipe:
    """Minimise ‖t_v − G_1[v] G_2[v]‖² for each token v, by a train of two cores; nothing is tuned.

    Xu et al., 2023. Tokens can be added, as each is by itself. At `--params 1`, its default, the
    matrices of the layers stay as they are. A table of low rank (`albert`) keeps more at the same
    size, and a head that is tied to the trains computes no less.
    """
    cut = Factorize(
        importance="none",
        solver="plain",
        ranks="share",
        params=1.0,
        embeddings=0.5,
        embeddings_as="trains",
    )
    return Recipe(FineTune(), cut, Tune(tune_epochs=0))
