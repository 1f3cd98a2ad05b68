"""Ranks go where the loss depends on them most."""

from collections.abc import Mapping

import numpy as np

from lpaf_jax.linalg import allocate_ranks_or_dense
from lpaf_jax.ranks.base import RankRule, Ranks, Shapes, register_rank_rule


def by_loss(
    shapes: Shapes, share: float, spectra: Mapping[str, np.ndarray], multiple_of: int
) -> Ranks:
    """The ranks of the least `Σ_p Σ_{j>k} s_pj²` within the budget."""
    budget = int(share * sum(m * n for m, n in shapes.values()))
    found = allocate_ranks_or_dense(
        [spectra[path] for path in shapes], list(shapes.values()), budget, multiple_of
    )
    return dict(zip(shapes, found, strict=True))


register_rank_rule(
    RankRule(
        "loss",
        "ranks go where the loss depends on them most, by the metric of two sides; what depends on "
        "all of its ranks stays dense",
        by_loss,
        needs_spectra=True,
    )
)
