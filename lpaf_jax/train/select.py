"""The k largest of many numbers spread over several arrays, without sorting them."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

MOST = 2**31 - 1  # entries that an int32 can count, and so one threshold can be over


def keep_largest(arrays: list[Array], count: ArrayLike) -> list[Array]:
    """Masks that are True on the `count` largest entries of all `arrays` together.

    Exactly `count` entries are True, ties included: of equal entries the earlier ones are kept.

    The threshold is found two bits at a time: 16 passes over the data that count what is above
    three candidates at once. A sort of ten million numbers takes seconds on CPU, and of arrays
    spread over devices it would have to bring all to one place; a pass sends three numbers.
    Float32 is mapped to integers of the same order first.

    Args:
        arrays: float32, any shapes, no NaN, `MOST` entries together.
        count: how many to keep, 0 to the number of entries (traced).

    Cost: 48 n comparisons, 18 readings of the data; a running count only where ties cross the
    threshold.
    """
    keys = [_ordered(x) for x in arrays]
    count = jnp.asarray(count, jnp.int32)

    def refine(i: Array, threshold: Array) -> Array:
        shift = 30 - 2 * i
        candidates = [threshold + (jnp.int32(digit) << shift) for digit in (1, 2, 3)]
        reached = sum((n >= count).astype(jnp.int32) for n in _at_least(keys, candidates))
        return threshold + (reached << shift)

    # Sums wrap around: the first digit takes the least integer to half of it, 0 or half the most.
    threshold = jax.lax.fori_loop(0, 16, refine, jnp.int32(-(2**31)))
    ties = [k == threshold for k in keys]
    above = [k > threshold for k in keys]
    room = count - sum((jnp.sum(a, dtype=jnp.int32) for a in above), jnp.int32(0))

    def all_ties() -> list[Array]:
        return [a | t for a, t in zip(above, ties, strict=True)]

    def first_ties() -> list[Array]:
        masks, seen = [], jnp.int32(0)
        for a, t in zip(above, ties, strict=True):
            order = seen + jnp.cumsum(t.reshape(-1), dtype=jnp.int32).reshape(t.shape)
            masks.append(a | (t & (order <= room)))
            seen = order.reshape(-1)[-1]
        return masks

    (reached,) = _at_least(keys, [threshold])
    return jax.lax.cond(reached == count, all_ties, first_ties)


def count_of(share: ArrayLike, total: int) -> Array:
    """The integer nearest to `share * total`, halves up: within 0.57 of the product itself.

    A float32 holds 24 bits: `round(share * total)` would miss by several entries beyond 2²⁴. Both
    factors are split at 2¹² instead, and all but a remainder is computed in integers.

    Args:
        share: float32, taken as 0 below 0 and as 1 above 1 (traced).
        total: at most `MOST`.
    """
    scaled = jnp.clip(jnp.asarray(share, jnp.float32), 0.0, 1.0) * 2**12
    coarse = jnp.floor(scaled)
    rest = scaled - coarse  # exact: the last bits of `share`
    high, low = divmod(total, 2**12)
    steps = coarse.astype(jnp.int32)
    product = low * steps
    remainder = (product % 2**12).astype(jnp.float32) + rest * jnp.float32(total)
    return high * steps + product // 2**12 + jnp.floor(remainder / 2**12 + 0.5).astype(jnp.int32)


def _at_least(keys: list[Array], thresholds: list[Array]) -> list[Array]:
    """How many keys reach each threshold, in one pass."""
    zeros = (jnp.int32(0),) * len(thresholds)
    counts: tuple[Array, ...] = zeros
    for k in keys:
        reach = tuple((k >= t).astype(jnp.int32) for t in thresholds)
        # One reduction of several operands: XLA would read the keys anew for each of several.
        found = jax.lax.reduce(reach, zeros, _add, tuple(range(k.ndim)))
        counts = _add(counts, found)
    return list(counts)


def _add(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(x + y for x, y in zip(first, second, strict=True))


def _ordered(x: Array) -> Array:
    """Integers in the order of the floats, −0 and +0 the same."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, jnp.int32(-(2**31)) - bits, bits)
