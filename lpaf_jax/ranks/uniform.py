"""One rank for all matrices."""

from collections.abc import Mapping

import numpy as np

from lpaf_jax.linalg import rank_for_ratio
from lpaf_jax.ranks.base import Channels, RankRule, Ranks, Shapes, register_rank_rule, share_of


def _uniform(
    shapes: Shapes,
    share: float,
    spectra: Mapping[str, np.ndarray],
    multiple_of: int,
    channels: Mapping[str, Channels],
) -> Ranks:
    ranks: Ranks = dict.fromkeys(shapes, rank_for_ratio(list(shapes.values()), share))
    return ranks | share_of(channels, share, multiple_of)


register_rank_rule(RankRule("uniform", "one rank for all matrices", _uniform))
