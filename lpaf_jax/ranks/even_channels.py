"""As many channels in every block, and no factors."""

import math

from lpaf_jax.ranks.base import Limits, Parts, RankRule, Ranks, register_rank_rule, share_of


def _even(parts: Parts, limits: Limits) -> Ranks:
    """What is to go goes from channels alone, the same share of each.

    Blocks are alike, so that this is one number of channels for all of them.
    """
    whole = sum(math.prod(shape) for shape in parts.shapes.values())
    of_channels = sum(total * price for total, price in parts.channels.values())
    if not of_channels:
        raise ValueError("this rank rule only drops channels: add --channels feed-forward")
    share = 1 - (1 - limits.share) * (whole + of_channels) / of_channels
    least = whole / (whole + of_channels)
    if any(share * total < 1 for total, _ in parts.channels.values()):
        raise ValueError(
            f"the matrices that stay dense are already {least:.1%} of them: give a larger share"
        )
    left: Ranks = share_of(parts.channels, limits._replace(share=share))
    return dict.fromkeys(parts.shapes) | left


register_rank_rule(
    RankRule(
        "even-channels",
        "only channels are dropped, equally many in every block; other matrices stay dense",
        _even,
        factorizes=False,
    )
)
