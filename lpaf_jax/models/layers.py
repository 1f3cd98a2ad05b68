"""Linear layers, dense and mixed, with the call signature that those of factors have.

All map `x: (..., m)` to `(..., n)`, so a model that holds one never asks which it is, and
compressing a model is nothing but putting another layer in its place. Those of factors are in
`lpaf_jax.factors`. Norms, embeddings and dropout of all families are here, too.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors.layer import by_rows, optional, plus, rows_of
from lpaf_jax.linalg import LowRank, nf4, nf4_dense, nf4_matmul


class Fixed(nnx.Variable):
    """State of a layer that is never trained."""


class Mask(Fixed):
    """A 0/1 pattern."""


class Frozen(Fixed):
    """A parameter that has no gradient, and of which an optimiser knows nothing."""


class Quantized(Frozen):
    """A frozen matrix in four bits a number (NF4), made with `dense`, its (m, n)."""

    @classmethod
    def of(cls, w: Array) -> "Quantized":
        return cls(nf4(w), dense=w.shape)

    def __getitem__(self, key: Any) -> Any:
        found: Any = self
        return nf4_dense(self.get_value(), found.dense)[key]

    def product(self, x: Array) -> Array:
        """`x W` of rows x."""
        found: Any = self
        return nf4_matmul(x, self.get_value(), found.dense)


class Draw(nnx.Variable):
    """The Bernoulli draw of a mixed layer for one forward pass."""


class Linear(nnx.Module):
    """`y = x W + c`; without `c` where `bias` is None, as in all of them."""

    def __init__(self, kernel: Array, bias: Array | None):
        self.kernel = nnx.Param(kernel)
        self.bias = optional(bias)

    def __call__(self, x: Array) -> Array:
        return by_rows(x, lambda rows: plus(rows @ self.kernel[...], self.bias))


class MixedLinear(nnx.Module):
    """`y = z x (M ∘ W) + (1 − z) (x A) B + c` for a draw `z` in {0, 1}.

    Only the branch that was drawn is computed, forward and backward: `2mn` or `2k(m + n)` FLOP a
    token. Gradients reach W, A and B, and are 0 in the branch that was not drawn. `mask` is None
    where W was never pruned.

    W is held as M ∘ W. Its gradient is 0 where M is, so that with an optimiser that leaves a weight
    of 0 alone it stays so, and no pass has to apply M again.
    """

    def __init__(self, kernel: Array, mask: Array | None, factors: LowRank, bias: Array | None):
        self.kernel = nnx.Param(kernel if mask is None else jnp.where(mask, kernel, 0))
        self.mask = None if mask is None else Mask(mask)
        self.a = nnx.Param(factors.a)
        self.b = nnx.Param(factors.b)
        self.bias = optional(bias)
        self.draw = Draw(jnp.zeros(()))

    def __call__(self, x: Array) -> Array:
        mask = None if self.mask is None else self.mask[...]
        branches = self.kernel[...], mask, self.a[...], self.b[...]
        return by_rows(x, lambda rows: plus(_drawn(self.draw[...], rows, *branches), self.bias))


@jax.custom_vjp
def _drawn(z: Array, x: Array, w: Array, mask: Array | None, a: Array, b: Array) -> Array:
    """`x @ w` where `z` is 1 and `(x @ a) @ b` where it is 0; the gradient of w is masked.

    The derivative is written out: left to JAX, a choice keeps what both branches would need.
    """
    return jax.lax.cond(z > 0, lambda: x @ w, lambda: (x @ a) @ b)


def _drawn_backward(given: tuple[Any, ...], g: Array) -> tuple[Array | None, ...]:
    z, x, w, mask, a, b = given

    def dense() -> tuple[Array, ...]:
        to_w = x.T @ g
        if mask is not None:
            to_w = jnp.where(mask, to_w, 0)
        return g @ w.T, to_w, jnp.zeros_like(a), jnp.zeros_like(b)

    def low_rank() -> tuple[Array, ...]:
        inner = g @ b.T
        return inner @ a.T, jnp.zeros_like(w), x.T @ inner, (x @ a).T @ g

    to_x, to_w, to_a, to_b = jax.lax.cond(z > 0, dense, low_rank)
    return jnp.zeros_like(z), to_x, to_w, None, to_a, to_b


_drawn.defvjp(lambda *given: (_drawn(*given), given), _drawn_backward)


class Embedding(nnx.Module):
    """Rows of a table, by index."""

    def __init__(self, weight: Array):
        self.weight = nnx.Param(weight)

    def __call__(self, index: Array) -> Array:
        return rows_of(self.weight[...], index)

    def scores(self, x: Array) -> Array:
        """`x Tᵀ`: (..., H) to (..., V), for a head that is tied to the table."""
        return x @ self.weight[...].T


class LayerNorm(nnx.Module):
    """`(x − mean) / sqrt(variance + ε) · weight + bias` over the last axis."""

    def __init__(self, weight: Array, bias: Array, epsilon: float):
        self.weight = nnx.Param(weight)
        self.bias = nnx.Param(bias)
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.mean(centred * centred, -1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normal * self.weight[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x²) + ε) · weight` over the last axis.

    Source: Zhang & Sennrich, "Root mean square layer normalization" (2019).
    """

    def __init__(self, weight: Array, epsilon: float):
        self.weight = nnx.Param(weight)
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        normal = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.epsilon)
        return (normal * self.weight[...]).astype(x.dtype)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """`x Φ(x)`, exact: Φ is the normal distribution function.

    Written with erf, which XLA vectorises on CPU, where `jax.nn.gelu` has erfc, which it does not:
    a factorized feed-forward block trains 2.7 times as fast.

    Source: Hendrycks & Gimpel, "Gaussian error linear units" (2016).
    """
    return (_wide(x) * _normal(_wide(x))).astype(x.dtype)


def _wide(x: Array) -> Array:
    # Below -2, where 1 + erf is near 0, bfloat16 would lose a twentieth of it and more.
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normal(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    # Without the barrier XLA shares erf with the forward pass, which costs more than it saves: an
    # array of its values is kept, and written by a loop of two outputs.
    narrow, x = x.dtype, _wide(jax.lax.optimization_barrier(x))
    density = math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * x * x)
    return ((g * (_normal(x) + x * density)).astype(narrow),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


_gelu_by_tanh = partial(jax.nn.gelu, approximate=True)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": _gelu_by_tanh,
    "gelu_pytorch_tanh": _gelu_by_tanh,
    "gelu_python_tanh": _gelu_by_tanh,
    "gelu_fast": _gelu_by_tanh,
    "gelu_accurate": _gelu_by_tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
"""By the names that a `config.json` has for them; several of `transformers` are one function."""


def activation(name: str) -> Callable[[Array], Array]:
    """The activation that a `config.json` calls `name`.

    Raises:
        LpafError: there is none of that name.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise LpafError(f"config.json: the activation {name!r} is not one of {known}")
    return ACTIVATIONS[name]


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero a share `rate` of `x` and scale the rest; the identity where `key` is None.

    An element is kept by a hash of its place and the key, and not by a word of `jax.random`: on CPU
    the generator is what dropout costs, 4.5 ms of 15 in an attention block. Keys come from
    `jax.random` still, so that those of layers and steps are independent. As the hash looks at one
    place alone, an array that is spread over devices loses what it would lose on one.

    Source: the mixing function is `lowbias32` of Wellons, "Prospecting for hash functions" (2018).
    """
    if key is None or rate == 0:
        return x
    first, second = jax.random.key_data(key).reshape(-1)[:2].astype(jnp.uint32)
    place = jnp.uint32(0)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    word = _mixed(_mixed(place ^ first) + second)
    return jnp.where(word >= jnp.uint32(round(rate * 2**32)), x * (1 / (1 - rate)), 0.0)


def _mixed(x: Array) -> Array:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
