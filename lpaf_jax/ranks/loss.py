"""Ranks go where the loss depends on them most."""

from collections.abc import Mapping

import numpy as np

from lpaf_jax.linalg import allocate_ranks_or_dense
from lpaf_jax.ranks.base import RankRule, Ranks, Shapes, register_rank_rule


def _by_loss(
    shapes: Shapes, share: float, spectra: Mapping[str, np.ndarray], multiple_of: int
) -> Ranks:
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
        _by_loss,
        needs_spectra=True,
    )
)
