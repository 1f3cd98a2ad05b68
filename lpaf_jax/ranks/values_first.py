"""Three times as much for values and outputs of attention as for queries and keys."""

import math
from collections.abc import Iterable

from lpaf_jax.models.compressible import side_of_attention
from lpaf_jax.ranks.base import Limits, Parts, RankRule, Ranks, register_rank_rule
from lpaf_jax.ranks.share import same_share

# Of the numbers that attention keeps: what values and outputs have.
_FIRST = 0.75


def _values_first(parts: Parts, limits: Limits) -> Ranks:
    """What attention keeps, 3 to 1, until values and outputs are whole; `share` for all others.

    LoRAP's ranks where all matrices of attention are square: `k = ¾ p d` of values and outputs, `¼
    p d` of queries and keys, and, once the first are whole, `p d − ½ d`. Where several heads share
    keys and values, which it does not speak of, both of a pair keep the same share.
    """
    sides = {path: side_of_attention(path) for path in parts.shapes}
    numbers = {"query-key": 0, "value-output": 0}
    for path, side in sides.items():
        if side is not None:
            numbers[side] += math.prod(parts.shapes[path])
    kept = limits.share * sum(numbers.values())
    first = min(_FIRST * kept, float(numbers["value-output"]))
    shares = {
        None: limits.share,
        "value-output": first / max(1, numbers["value-output"]),
        "query-key": (kept - first) / max(1, numbers["query-key"]),
    }
    found: Ranks = {}
    for path, side in sides.items():
        if shares[side] >= 1:
            found[path] = None
            continue
        alone = Parts({path: parts.shapes[path]}, {}, {})
        found |= same_share(alone, limits._replace(share=shares[side]))
    return found | same_share(parts._replace(shapes={}), limits)


def _check(paths: Iterable[str]) -> None:
    for path in paths:
        side_of_attention(path)


register_rank_rule(
    RankRule(
        "values-first",
        "in attention, three times as much for values and outputs as for queries and keys",
        _values_first,
        check=_check,
    )
)
