"""TensorGPT's embeddings: every token a tensor train."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("tensorgpt")
def tensorgpt() -> Recipe:
    """Minimise ‖t_v − G_1[v] G_2[v]‖² for each token v, by a train of two cores; nothing is tuned.

    Xu et al., 2023. Tokens can be added later, as each has its own train. With `--params 1`, its
    default, the layers' matrices are unchanged. A low-rank table (`albert`) is more accurate at the
    same size, and a head that is tied to the trains saves no computation.
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
