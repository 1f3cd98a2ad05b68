"""The same share of the numbers of each matrix."""

from lpaf_jax.ranks.base import Limits, Parts, RankRule, Ranks, register_rank_rule, share_of


def same_share(parts: Parts, limits: Limits) -> Ranks:
    """`k = ⌊p m n / (m + n)⌋` of each matrix, and the same share of all channels."""
    found: Ranks = {}
    step = limits.multiple_of
    for path, (m, n) in parts.shapes.items():
        rank = max(1, int(limits.share * m * n / (m + n)))
        if rank >= step:  # a step that the share does not pay for is no step
            rank = rank // step * step
        whole = limits.share >= 1 or rank * (m + n) >= m * n
        found[path] = None if whole else rank
    return found | share_of(parts.channels, limits)


register_rank_rule(RankRule("share", "the same share of each matrix's parameters", same_share))
