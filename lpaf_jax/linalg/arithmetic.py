"""Products that no device rounds, quotients that nothing breaks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def matmul(a: Array, b: Array) -> Array:
    """`a @ b` in the full precision of the dtype, where a GPU or TPU would round the inputs."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def ratio(x: Array, y: Array) -> Array:
    """`x / y`, and 0 where y is 0 (y is nowhere negative)."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)
