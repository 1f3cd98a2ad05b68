"""One rank for all matrices."""

from lpaf_jax.linalg import rank_for_ratio
from lpaf_jax.ranks.base import Limits, Parts, RankRule, Ranks, register_rank_rule, share_of


def _uniform(parts: Parts, limits: Limits) -> Ranks:
    rank = rank_for_ratio(list(parts.shapes.values()), limits.share)
    return dict.fromkeys(parts.shapes, rank) | share_of(parts.channels, limits)


register_rank_rule(RankRule("uniform", "the same rank for all matrices", _uniform))
