"""LPAF with what it leaves out: both metrics, ranks by the loss, and a teacher."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Prune, Tune


@register("lpaf-plus")
def lpaf_plus() -> Recipe:
    """Prune, factorize at the least cost to the loss, then learn from the dense model's answers.

    The three steps of LPAF (Ren & Zhu, 2024). In step 2 factors minimise tr L(W − AB)R(W − AB)ᵀ, L
    = E[xᵀx] of a matrix's inputs, R = E[gᵀg] of the gradients at its outputs (K-FAC, Martens &
    Grosse, 2015), with ranks as in OBD-LLM (2026); step 3 is distillation (Hinton et al., 2015; Sun
    et al., 2019) instead of mixed ranks, at half the learning rate of `lpaf`, as it starts from a
    better model.
    """
    return Recipe(
        FineTune(),
        Prune(),
        Factorize(importance="two-sided", solver="metric", ranks="loss"),
        Tune(tune_lr=1e-4, distil=1.0, distil_hidden=1.0, temperature=2.0),
    )
