"""One rank for all matrices."""

from collections.abc import Mapping

import numpy as np

from lpaf_jax.linalg import rank_for_ratio
from lpaf_jax.ranks.base import RankRule, Ranks, Shapes, register_rank_rule


def _uniform(
    shapes: Shapes, share: float, spectra: Mapping[str, np.ndarray], multiple_of: int
) -> Ranks:
    return dict.fromkeys(shapes, rank_for_ratio(list(shapes.values()), share))


register_rank_rule(RankRule("uniform", "one rank for all matrices", _uniform))
