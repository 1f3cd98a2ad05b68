"""Every second block is cut, and the others are left as they are."""

import math
import re
from collections.abc import Iterable

from lpaf_jax.core.errors import LpafError
from lpaf_jax.ranks.base import Limits, Parts, RankRule, Ranks, register_rank_rule
from lpaf_jax.ranks.share import same_share


def _alternate(parts: Parts, limits: Limits) -> Ranks:
    """The blocks 1, 3, ... keep the same share, so that all together keep the one asked for.

    KnGPT2 cuts these, and leaves the first block whole.
    """
    sizes = {path: math.prod(shape) for path, shape in parts.shapes.items()}
    sizes |= {path: total * price for path, (total, price) in parts.channels.items()}
    cut = {path for path in sizes if block_of(path) % 2}
    if not cut:
        raise ValueError("there is only one block, and the first block stays dense")
    lost = (1 - limits.share) * sum(sizes.values())
    share = 1 - lost / sum(sizes[path] for path in cut)
    if share <= 0:
        least = 1 - sum(sizes[path] for path in cut) / sum(sizes.values())
        raise ValueError(
            f"the blocks that stay dense are already {least:.1%}: give a larger share, or --ranks "
            "share"
        )
    shapes = {path: shape for path, shape in parts.shapes.items() if path in cut}
    channels = {path: of for path, of in parts.channels.items() if path in cut}
    within = same_share(Parts(shapes, {}, channels), limits._replace(share=share))
    return {path: within.get(path) for path in sizes}


def block_of(path: str) -> int:
    """The index of the block that a layer is in: the first number in its path.

    Raises:
        LpafError: there is none.
    """
    found = re.search(r"(?<=\.)\d+(?=\.)", path)
    if found is None:
        raise LpafError(f"{path} is in no numbered block: use another recipe or --ranks share")
    return int(found[0])


def _check(paths: Iterable[str]) -> None:
    for path in paths:
        block_of(path)


register_rank_rule(
    RankRule(
        "alternate",
        "the same share of each matrix in every second block; the other blocks stay dense",
        _alternate,
        whole="Every second block stays dense, starting with the first.",
        cut="matrices of every second block",
        check=_check,
    )
)
