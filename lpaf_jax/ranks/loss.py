"""Ranks go where the loss depends on them most."""

import math
from collections.abc import Mapping

import numpy as np

from lpaf_jax.linalg import allocate_ranks
from lpaf_jax.ranks.base import RankRule, Ranks, Shapes, register_rank_rule


def _by_loss(
    shapes: Shapes, share: float, spectra: Mapping[str, np.ndarray], multiple_of: int
) -> Ranks:
    """Ranks by `allocate_ranks`; a matrix that factors would not make smaller stays dense.

    What that saves goes to the others, until no further matrix stays dense.
    """
    ranks: Ranks = {}
    budget = int(share * sum(m * n for m, n in shapes.values()))
    while len(ranks) < len(shapes):
        rest = [path for path in shapes if path not in ranks]
        found = allocate_ranks(
            [spectra[p] for p in rest], [shapes[p] for p in rest], budget, multiple_of
        )
        given = dict(zip(rest, found, strict=True))
        dense = [p for p in rest if given[p] * sum(shapes[p]) >= math.prod(shapes[p])]
        if not dense:
            ranks |= given
            break
        ranks |= dict.fromkeys(dense)
        budget -= sum(math.prod(shapes[path]) for path in dense)
    return {path: ranks[path] for path in shapes}


register_rank_rule(
    RankRule(
        "loss",
        "ranks go where the loss depends on them most, by the metric of two sides",
        _by_loss,
        needs_spectra=True,
    )
)
