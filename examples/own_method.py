r"""A method of one's own, in a file of one's own: weights matter by their size and their Fisher.

    lpaf compress minilm --task rotten_tomatoes --preset quick \
        --recipe examples/own_method.py:mine --params 0.25 --out runs/mine

`|W| · sqrt(E[(∂L/∂W)²])` is how much of the loss an entry stands for, to first order.
"""

import jax.numpy as jnp

from lpaf_jax import Factorize, FineTune, Recipe, Tune, register
from lpaf_jax.importance import (
    Importance,
    Subject,
    Weighting,
    fisher_weightings,
    register_importance,
)


def _salience(subject: Subject) -> dict[str, Weighting]:
    found = fisher_weightings(subject)
    return {
        path: Weighting(entries=jnp.abs(subject.weights[path]) * jnp.sqrt(weighting.entries))
        for path, weighting in found.items()
    }


register_importance(
    Importance(
        "salience",
        "to preserve the weights that are large and that the loss depends on",
        gives=frozenset({"entries"}),
        needs=frozenset({"loss"}),
        of_model=_salience,
    )
)


@register("mine")
def mine() -> Recipe:
    """Minimise Σ_ij r_i (W − AB)²_ij with r_i = Σ_j |W_ij| sqrt(E[(∂L/∂W_ij)²])."""
    return Recipe(FineTune(), Factorize(importance="salience", solver="row"), Tune())
