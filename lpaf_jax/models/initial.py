"""What every family starts from: newly drawn tensors, and a key for each of its layers."""

import jax
import jax.numpy as jnp
from jax import Array

from lpaf_jax.models.layers import Embedding, LayerNorm, Linear, RMSNorm


class Initializer:
    """Draws the initial tensors of a model from a normal distribution.

    Args:
        key: where they come from.
        deviation: `initializer_range` of the config, 0.02 unless it says otherwise.
    """

    def __init__(self, key: Array, deviation: float = 0.02):
        self._key, self._deviation = key, deviation

    def normal(self, *shape: int) -> Array:
        self._key, key = jax.random.split(self._key)
        return self._deviation * jax.random.normal(key, shape)

    def linear(self, m: int, n: int, *, bias: bool = True) -> Linear:
        return Linear(self.normal(m, n), jnp.zeros(n) if bias else None)

    def embedding(self, rows: int, n: int) -> Embedding:
        return Embedding(self.normal(rows, n))

    def layer_norm(self, n: int, epsilon: float) -> LayerNorm:
        return LayerNorm(jnp.ones(n), jnp.zeros(n), epsilon)

    def rms_norm(self, n: int, epsilon: float) -> RMSNorm:
        return RMSNorm(jnp.ones(n), epsilon)


def split_key(key: Array | None, n: int) -> tuple[Array | None, ...]:
    """`n` keys of one; None for each where there is none."""
    return (None,) * n if key is None else tuple(jax.random.split(key, n))
