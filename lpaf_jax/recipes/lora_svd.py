"""LoRA-SVD: adapters that make up for a cut while it is made."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Compensate, FineTune, Tune


@register("lora-svd")
def lora_svd() -> Recipe:
    """Minimise Σ_ij r_i (W + sAB − UV)²_ij, r_i = Σ_j E[(∂L/∂W_ij)²], while A and B are trained.

    Ranks fall from truncation to truncation; then adapters are trained beside the factors. No
    gradient of a whole matrix is needed. Our combination of LoRA (Hu et al., 2021) and the weights
    of FWSVD (Hsu et al., 2022).
    """
    cut = Compensate(importance="fisher-rows", solver="metric", lora_epochs=0.8)
    return Recipe(FineTune(), cut, Tune(lora=8, tune_epochs=0.2))
