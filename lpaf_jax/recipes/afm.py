"""AFM of LORD: principal components of a layer's outputs about their mean, with a bias."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("afm")
def afm() -> Recipe:
    """Minimise E‖x(W − AB) − c‖² over A, B and c; c is added to the bias.

    Kaushal et al., "LORD: Low Rank Decomposition Of Monolingual Code LLMs For One-Shot
    Compression", 2023. Every layer needs a bias: BERT and GPT-2 have them, Llama does not.
    """
    return Recipe(
        FineTune(), Factorize(importance="centred", solver="affine", ranks="share"), Tune()
    )
