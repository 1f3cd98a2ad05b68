"""KnGPT2: one Kronecker product in every second block, healed layer by layer."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("kngpt2")
def kngpt2() -> Recipe:
    """Minimise ‖W − A ⊗ B‖², B of (2, 1) or (1, 2), in every second block and of the embeddings.

    Edalati et al., 2022. Tuned by the task and by what the dense model has in between: hidden
    states after the embeddings and after every layer, where the source has outputs of feed-forward
    layers, and attention. The source does not say how it weighs these; here all weights are 1.
    """
    cut = Factorize(
        importance="none",
        solver="kronecker-pairs",
        ranks="alternate",
        params=0.75,
        embeddings=0.5,
        embeddings_as="kronecker",
    )
    return Recipe(FineTune(), cut, Tune(distil_hidden=1.0, distil_attention=1.0))
