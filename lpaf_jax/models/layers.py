"""Linear layers a factorization needs: dense, low-rank and mixed, with one call signature.

All three map `x: (..., m)` to `(..., n)`, so a model that holds one never asks which it is, and
compressing a model is nothing but putting another layer in its place.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.custom_batching import custom_vmap

from lpaf_jax.linalg import LowRank


class Mask(nnx.Variable):
    """A fixed 0/1 pattern: state of the layer, never trained."""


class Draw(nnx.Variable):
    """The Bernoulli draw of a mixed layer for one forward pass."""


class Linear(nnx.Module):
    """`y = x W + c`."""

    def __init__(self, kernel: Array, bias: Array):
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(bias)

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel[...] + self.bias[...]


class LowRankLinear(nnx.Module):
    """`y = (x A) B + c`: `2k(m + n)` FLOP a token in place of `2mn`."""

    def __init__(self, factors: LowRank, bias: Array):
        self.a = nnx.Param(factors.a)
        self.b = nnx.Param(factors.b)
        self.bias = nnx.Param(bias)

    def __call__(self, x: Array) -> Array:
        return LowRank(self.a[...], self.b[...]).apply(x) + self.bias[...]


class MixedLinear(nnx.Module):
    """`y = x (z (M ∘ W) + (1 − z) A B) + c` for a draw `z` in {0, 1}.

    The effective weight is formed first: one `m k n` product a step, whatever the number of
    tokens, where evaluating both branches on the tokens would cost `2mn + 2k(m + n)` a token.
    Gradients reach W, A and B. `mask` is None where W was never pruned.
    """

    def __init__(self, kernel: Array, mask: Array | None, factors: LowRank, bias: Array):
        self.kernel = nnx.Param(kernel)
        self.mask = None if mask is None else Mask(mask)
        self.a = nnx.Param(factors.a)
        self.b = nnx.Param(factors.b)
        self.bias = nnx.Param(bias)
        self.draw = Draw(jnp.zeros(()))

    def __call__(self, x: Array) -> Array:
        dense = self.kernel[...]
        if self.mask is not None:
            dense = jnp.where(self.mask[...], dense, 0.0)
        product = self.a[...] @ self.b[...]
        # A select, not a weighted sum: exact for z in {0, 1} and one pass over the weight.
        kernel = jnp.where(self.draw[...] > 0, dense, product)
        rows = x.reshape(-1, x.shape[-1])
        return _product(rows, kernel).reshape(*x.shape[:-1], -1) + self.bias[...]


@custom_vmap
def _matmul(x: Array, w: Array) -> Array:
    return x @ w


@_matmul.def_vmap
def _matmul_of_stacks(size: int, in_batched: list[bool], x: Array, w: Array) -> tuple[Array, bool]:
    if not in_batched[1]:
        return x @ w, True
    return jnp.stack([(x[i] if in_batched[0] else x) @ w[i] for i in range(size)]), True


@jax.custom_vjp
def _product(x: Array, w: Array) -> Array:
    """`x @ w` for matrices, one product each under `vmap`.

    The two passes of mixed-rank fine-tuning have a weight each. XLA runs the batched product that
    `vmap` makes of it on one thread on CPU, and two plain products on all of them.
    """
    return _matmul(x, w)


_product.defvjp(
    lambda x, w: (_matmul(x, w), (x, w)),
    lambda saved, g: (_matmul(g, saved[1].T), _matmul(saved[0].T, g)),
)


class Embedding(nnx.Module):
    """Rows of a table, by index."""

    def __init__(self, weight: Array):
        self.weight = nnx.Param(weight)

    def __call__(self, index: Array) -> Array:
        return self.weight[...][index]


class LayerNorm(nnx.Module):
    """`(x − mean) / sqrt(variance + ε) · weight + bias` over the last axis."""

    def __init__(self, weight: Array, bias: Array, epsilon: float):
        self.weight = nnx.Param(weight)
        self.bias = nnx.Param(bias)
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.mean(centred * centred, -1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        return normal * self.weight[...] + self.bias[...]


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero a share `rate` of `x` and scale the rest; the identity where `key` is None.

    Eight random bits decide each element, four elements a generated word: on CPU the generator is
    the cost of dropout. The share is therefore `rate` rounded to 1/256, and the scale is exact for
    the rounded share.
    """
    drop = round(rate * 256)
    if key is None or drop == 0:
        return x
    words = jax.random.bits(key, (-(-x.size // 4),), jnp.uint32)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x.size]
    keep = octets.reshape(x.shape) >= drop
    return jnp.where(keep, x * (256 / (256 - drop)), 0.0)
