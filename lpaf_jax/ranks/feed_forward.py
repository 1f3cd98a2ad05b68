"""Feed-forward matrices are cut, and attention is left as it is."""

import math

from lpaf_jax.models.compressible import is_feed_forward
from lpaf_jax.ranks.base import Limits, Parts, RankRule, Ranks, register_rank_rule
from lpaf_jax.ranks.share import same_share


def _feed_forward(parts: Parts, limits: Limits) -> Ranks:
    """Feed-forward matrices, and channels, keep one share, so that all keep the one asked for."""
    sizes = {path: math.prod(shape) for path, shape in parts.shapes.items()}
    sizes |= {path: total * price for path, (total, price) in parts.channels.items()}
    cut = {path for path in sizes if path in parts.channels or is_feed_forward(path)}
    whole = sum(sizes.values())
    of_cut = sum(sizes[path] for path in cut)
    share = 1 - (1 - limits.share) * whole / max(of_cut, 1)
    if share <= 0:
        raise ValueError(
            f"the attention matrices, which stay dense, are {1 - of_cut / whole:.1%} of the "
            "weights: give more, or --ranks share"
        )
    shapes = {path: shape for path, shape in parts.shapes.items() if path in cut}
    within = same_share(Parts(shapes, {}, parts.channels), limits._replace(share=share))
    return {path: within.get(path) for path in sizes}


register_rank_rule(
    RankRule(
        "feed-forward",
        "the same share of each feed-forward matrix; attention stays whole",
        _feed_forward,
        whole="Attention matrices stay dense.",
        cut="feed-forward matrices",
    )
)
