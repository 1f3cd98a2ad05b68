"""Solving away from the ends of the dtype: every argument is brought near 1 first.

Squares and sums of squares leave float32 where the entries are beyond 1e19 or below 1e-19, long
before the entries do. Here a power of two is taken out, which rounds nothing: the result at an
ordinary scale is the same to the last bit, and so it is at any other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int, UInt


def magnitude(x: Float[Array, "..."]) -> tuple[UInt[Array, "..."], Float[Array, "..."]]:
    """The bits of |x|, which are in the order of the numbers and 0 for 0 alone, and the sign."""
    integer, _, _ = _layout(x.dtype)
    bits = lax.bitcast_convert_type(x, integer)
    size = bits & jnp.array(jnp.iinfo(integer).max >> 1, integer)
    return size, jnp.where(bits == size, 1, -1).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def as_dtype(x: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """`x` in another dtype, numbers below the normal ones included, which XLA would take for 0."""
    if jnp.finfo(x.dtype).maxexp >= jnp.finfo(dtype).maxexp:
        return x.astype(dtype)
    _, digits, bias = _layout(x.dtype)
    size, sign = magnitude(x)
    below = shift((sign * size.astype(x.dtype)).astype(dtype), jnp.int32(1 - bias - digits))
    return jnp.where(size >> digits == 0, below, x.astype(dtype))


@as_dtype.defjvp
def _as_dtype_jvp(dtype: Any, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return as_dtype(primals[0], dtype), tangents[0].astype(dtype)


def exponent(x: Float[Array, "..."], axis: int | None = None) -> Int[Array, "..."]:
    """The even e with `2^e <= max |x| < 2^(e + 2)`; 0 where x is all zero or not finite.

    Even, so that the root of the unit is a power of two as well: that is the scale of factors.

    Args:
      x: not empty.
      axis: over which the largest is taken, kept with size 1. All by default, which gives a scalar.
    """
    _, digits, bias = _layout(x.dtype)
    size, _ = magnitude(lax.stop_gradient(x))
    largest = size.max(axis=axis, keepdims=axis is not None)
    field = (largest >> digits).astype(jnp.int32)
    # A number below the normal ones has its leading bit somewhere among the digits.
    lead = size.dtype.itemsize * 8 - 1 - lax.clz(largest).astype(jnp.int32)
    e = jnp.where(field > 0, field - bias, lead + 1 - bias - digits)
    usable = (largest > 0) & (field < 2 * bias + 1)
    return jnp.where(usable, e - (e & 1), 0)


@jax.custom_jvp
def to_unit(x: Float[Array, "..."], e: Int[Array, "..."]) -> Float[Array, "..."]:
    """`x / 2^e` for e = `exponent(x)`, whose largest entry lies in [1, 4).

    Also where x lies below the normal numbers, which XLA takes for zero on a CPU and elsewhere:
    their digits are read as an integer.
    """
    _, digits, bias = _layout(x.dtype)
    size, sign = magnitude(x)
    below = sign * shift(size.astype(x.dtype), 1 - bias - digits - e)
    return jnp.where(size >> digits == 0, below, x * _power(-e, x.dtype))


@to_unit.defjvp
def _to_unit_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    x, e = primals
    return to_unit(x, e), shift(tangents[0], -e)


@jax.custom_jvp
def from_unit(x: Float[Array, "..."], e: Int[Array, "..."]) -> Float[Array, "..."]:
    """`2^e x`, numbers below the normal ones included."""
    integer, digits, bias = _layout(x.dtype)
    _, sign = magnitude(x)
    least = 1 - bias - digits
    below = jnp.round(jnp.minimum(jnp.abs(shift(x, e - least)), 2.0**digits)).astype(integer)
    below |= jnp.where(sign < 0, jnp.array(1, integer) << (x.dtype.itemsize * 8 - 1), 0)
    scaled = shift(x, e)
    return jnp.where(scaled == 0, lax.bitcast_convert_type(below, x.dtype), scaled)


@from_unit.defjvp
def _from_unit_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    x, e = primals
    return from_unit(x, e), shift(tangents[0], e)


def shift(x: Float[Array, "..."], e: Int[Array, "..."]) -> Float[Array, "..."]:
    """`2^e x`, for powers beyond the range of the dtype too."""
    half = e >> 1
    return x * _power(half, x.dtype) * _power(e - half, x.dtype)


def at_unit_scale(
    solve: Callable[..., Any],
    matrices: Sequence[Array],
    weights: Sequence[Array] = (),
    settings: Sequence[Array] = (),
) -> Any:
    """`solve(*matrices, *weights, *settings)`, solved with the first two near 1.

    `solve` gives factors A and B of a matrix, or of a product of two, under weights whose scale is
    irrelevant: both factors grow as the root of the matrices. It may close over no traced array.

    A derivative in an argument of unit v is of the size of the factors over v. The chain through
    the scaled problem, first 1/v and then the unit of the factors, leaves the dtype on its way
    where the argument is near either end, though the result does not. Here the two are one factor.
    So derivatives of the product AB are right at any scale. Second ones of the factors, of which
    those of the product are made, go as v^-3/2 and are right as far as the dtype can hold that.

    Args:
      settings: passed on as they are.
    """

    def units_of(arguments: Sequence[Array]) -> tuple[list[Array], Array]:
        scaled = len(matrices) + len(weights)
        units = [exponent(x) if i < scaled else jnp.int32(0) for i, x in enumerate(arguments)]
        return units, sum(units[: len(matrices)], jnp.int32(0)) >> 1

    @jax.custom_jvp
    def scaled(*arguments: Array) -> Any:
        units, out = units_of(arguments)
        factors = solve(*map(to_unit, arguments, units))
        return jax.tree.map(lambda x: shift(x, out), factors)

    def derivative(arguments: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        units, out = units_of(arguments)
        near_one = list(map(to_unit, arguments, units))
        moving = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

        def solve_moving(*values: Array) -> Any:
            given = dict(enumerate(near_one)) | dict(zip(moving, values, strict=True))
            return solve(*given.values())

        factors, change = jax.jvp(
            solve_moving,
            [near_one[i] for i in moving],
            [shift(tangents[i], out - units[i]) for i in moving],
        )
        return jax.tree.map(lambda x: shift(x, out), factors), change

    scaled.defjvp(derivative, symbolic_zeros=True)
    return scaled(*matrices, *weights, *settings)


def _layout(dtype: Any) -> tuple[Any, int, int]:
    """The unsigned integers of this width, the bits of the fraction, the bias of the exponent."""
    info = jnp.finfo(dtype)
    return jnp.dtype(f"uint{info.bits}"), info.nmant, info.maxexp - 1


def _power(e: Array, dtype: Any) -> Array:
    """2^e exactly, e held within the normal numbers."""
    integer, digits, bias = _layout(dtype)
    field = (jnp.clip(e, 1 - bias, bias) + bias).astype(integer)
    return lax.bitcast_convert_type(field << digits, dtype)
