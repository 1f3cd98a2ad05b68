"""Plain truncated SVD, with and without tuning."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune


@register("svd-ft")
def svd_ft() -> Recipe:
    """Minimise ‖W − AB‖², then fine-tune the factors: SVD_Ft in the paper's tables."""
    return Recipe(FineTune(), Factorize(importance="none", solver="plain"), Tune())


@register("svd")
def svd() -> Recipe:
    """Minimise ‖W − AB‖² and nothing else. Eckart & Young, 1936."""
    return Recipe(FineTune(), Factorize(importance="none", solver="plain"), Tune(tune_epochs=0))
