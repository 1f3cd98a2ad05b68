"""KnGPT2: one Kronecker product in every second block, healed layer by layer."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("kngpt2")
def kngpt2() -> Recipe:
    """Minimise ‖W − A ⊗ B‖², B 2 × 1 or 1 × 2, in every second block and in the embeddings.

    Edalati et al., 2022. Tuned on the task and by distillation of attention and of the hidden
    states after the embeddings and every layer; the source uses outputs of feed-forward layers
    instead of the latter. The source does not give the weights of these terms; here all are 1.
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
