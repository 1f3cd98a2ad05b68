"""The same share of the numbers of each matrix."""

from collections.abc import Mapping

import numpy as np

from lpaf_jax.ranks.base import Channels, RankRule, Ranks, Shapes, register_rank_rule, share_of


def _share(
    shapes: Shapes,
    share: float,
    spectra: Mapping[str, np.ndarray],
    multiple_of: int,
    channels: Mapping[str, Channels],
) -> Ranks:
    found: Ranks = {}
    for path, (m, n) in shapes.items():
        rank = max(1, int(share * m * n / (m + n)))
        if rank >= multiple_of:  # a step that the share does not pay for is no step
            rank = rank // multiple_of * multiple_of
        found[path] = None if rank * (m + n) >= m * n else rank
    return found | share_of(channels, share, multiple_of)


register_rank_rule(RankRule("share", "the same share of the numbers of each matrix", _share))
