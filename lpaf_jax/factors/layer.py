"""What layers of all kinds have in common."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


def by_rows(x: Array, layer: Callable[[Array], Array]) -> Array:
    """`layer` of all rows as one matrix.

    XLA on CPU takes a third longer over the gradient of a matrix that multiplies a batch of
    matrices: it then sums over two axes.
    """
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def optional(bias: Array | None) -> nnx.Param | None:
    return None if bias is None else nnx.Param(bias)


def plus(y: Array, bias: nnx.Param | None) -> Array:
    """The sum in the dtype of `y`, whose gradient for `bias` is summed in the wider one."""
    return y if bias is None else (y + bias[...]).astype(y.dtype)


@jax.custom_vjp
def rows_of(table: Array, index: Array) -> Array:
    """`table[index]`."""
    return table[index]


def _rows_backward(given: tuple[Array, Array], g: Array) -> tuple[Array, None]:
    table, index = given
    # Thousands of tokens may share a row: in bfloat16 a sum stands still after a few hundred.
    wide = jnp.promote_types(g.dtype, jnp.float32)
    summed = jnp.zeros(table.shape, wide).at[index].add(g.astype(wide))
    return summed.astype(table.dtype), None


rows_of.defvjp(lambda table, index: (table[index], (table, index)), _rows_backward)
