"""How large a rank a parameter budget allows."""

import math
from collections.abc import Sequence


def rank_for_ratio(shapes: Sequence[tuple[int, int]], ratio: float) -> int:
    """The one rank for all matrices that keeps a share `ratio` of their parameters.

    `k = ⌊ratio · Σ m n / Σ (m + n)⌋` over the shapes (m, n), at least 1 and at most the smallest
    side of any of them. A ratio below Σ (m + n) / Σ m n cannot be met; k is then 1.

    Raises:
      ValueError: no shapes, a side below 1, or a ratio outside (0, 1].
    """
    if not shapes:
        raise ValueError("no shapes given: a rank needs at least one matrix (m, n)")
    if any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise ValueError(f"each shape must be (m, n) with positive sides, got {list(shapes)}")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
    dense = sum(m * n for m, n in shapes)
    per_rank = sum(m + n for m, n in shapes)
    # The slack keeps a product that is whole in exact arithmetic from rounding to just below it.
    rank = math.floor(ratio * dense / per_rank * (1 + 1e-12))
    return max(1, min(rank, *(min(shape) for shape in shapes)))
