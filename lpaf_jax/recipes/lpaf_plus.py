"""LPAF with what it leaves out: both metrics, ranks by the loss, and a teacher."""

from lpaf_jax.recipes.base import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Prune, Tune


@register("lpaf-plus")
def lpaf_plus() -> Recipe:
    """Prune, factorize at the least cost to the loss, then learn from the dense model's answers.

    As in LPAF (Ren & Zhu, 2024), the model is pruned first. The factors AB of a matrix W then
    minimise tr L(W − AB)R(W − AB)ᵀ, where L = E[xᵀx] of its inputs and R = E[gᵀg] of the gradients
    at its outputs, the metric of K-FAC (Martens & Grosse, 2015); ranks are chosen by what they cost
    the loss, as in OBD-LLM (2026). Last, the factors are trained to repeat the dense model's
    answers and hidden states (distillation: Hinton et al., 2015; Sun et al., 2019), where LPAF
    mixes them with the matrices, at half the learning rate of `lpaf`, as they start from a better
    model.
    """
    return Recipe(
        FineTune(),
        Prune(),
        Factorize(importance="two-sided", solver="metric", ranks="loss"),
        Tune(tune_lr=1e-4, distil=1.0, distil_hidden=1.0, temperature=2.0),
    )
