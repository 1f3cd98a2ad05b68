"""Four bits a number: NF4 with quantized scales.

```python
q = nf4(w)                    # 4.127 bits a number
w_hat = nf4_dense(q, w.shape)
y = nf4_matmul(x, q, w.shape)  # x @ w_hat, without w_hat
```

Source: Dettmers et al., "QLoRA: efficient finetuning of quantized LLMs" (2023).
"""

import math
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, UInt8

from lpaf_jax.linalg.checks import as_floats

BLOCK, GROUP = 64, 256
"""Numbers that share a scale, and scales that share a step."""


def _table() -> np.ndarray:
    """Quantiles of the normal distribution, scaled to [−1, 1]: 7 below 0, 0, and 8 above it."""
    # Where QLoRA begins: the mean of 1 − 1/30 and 1 − 1/32.
    end = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
    above = [NormalDist().inv_cdf(p) for p in np.linspace(end, 0.5, 9)[:-1]]
    below = [-NormalDist().inv_cdf(p) for p in np.linspace(end, 0.5, 8)[:-1]]
    found = np.sort(np.array([*below, 0.0, *above]))
    return (found / found[-1]).astype(np.float32)


TABLE = _table()
"""The 16 values of a code, in their order."""


class Nf4(NamedTuple):
    """A matrix of N numbers in four bits each, in blocks of 64 along its rows.

    The scale of a block is its largest magnitude; scales are kept as their mean and 8 bits of what
    they differ from it, in groups of 256.

    Attributes:
        codes: two in a byte, the first in the high half.
        scales: of blocks, in steps of their group.
        steps: of groups.
        mean: of scales.
    """

    codes: UInt8[Array, " bytes"]
    scales: Int8[Array, " blocks"]
    steps: Float[Array, " groups"]
    mean: Float[Array, ""]


def nf4(w: Float[Array, "m n"]) -> Nf4:
    """The nearest value of `TABLE` for each number of a block, scaled by the largest of them.

        ŵ = s t_c,   c = argmin_c |w − s t_c|,   s ≈ max |w| over its block

    Scales are rounded first, so that codes are nearest for what is multiplied back.

    Args:
        w: any matrix, or array of another shape; the last block is filled up with zeros.

    Returns:
        4 bits a number, and 8/64 + 32/(64 · 256) for scales: 4.127.

    Raises:
        ValueError: `w` is empty or holds no floats.

    Cost: O(N) and a search among 16 values.

    Departs from the source in how scales are kept: 8 bits in even steps, and not of a table.
    """
    (w,) = as_floats(w)
    if w.size == 0:
        raise ValueError("w is empty")
    return _quantized(w)


@jax.jit
def _quantized(w: Array) -> Nf4:
    flat = jnp.ravel(w).astype(jnp.float32)
    blocks = _padded(flat, BLOCK)
    largest = jnp.max(jnp.abs(blocks), axis=1)
    mean = jnp.mean(largest)
    groups = _padded(largest - mean, GROUP)
    steps = jnp.max(jnp.abs(groups), axis=1) / 127
    units = jnp.round(groups / jnp.where(steps > 0, steps, 1)[:, None])
    scales = units.reshape(-1)[: len(largest)].astype(jnp.int8)
    scale = _scales(scales, steps, mean)
    middles = jnp.asarray((TABLE[1:] + TABLE[:-1]) / 2)
    found = jnp.searchsorted(middles, blocks / jnp.where(scale > 0, scale, 1)[:, None])
    pairs = found.reshape(-1)[: 2 * math.ceil(flat.size / 2)].reshape(-1, 2).astype(jnp.uint8)
    return Nf4(pairs[:, 0] << 4 | pairs[:, 1], scales, steps, mean)


def nf4_dense(q: Nf4, shape: tuple[int, ...], dtype: jnp.dtype | type = jnp.float32) -> Array:
    """The array of `shape` that `q` stands for, `ŵ = s t_c`."""
    return _dense(q.codes, _scales(q.scales, q.steps, q.mean), shape).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def nf4_matmul(x: Float[Array, "t m"], q: Nf4, shape: tuple[int, int]) -> Float[Array, "t n"]:
    """`x ŵ`, and `g ŵᵀ` for its gradient, with some rows of ŵ at a time.

    XLA would multiply back all matrices of a model before it needs the first one, as they depend on
    no input, and keep them for the gradient. In a loop it cannot.

    Args:
        x: any float dtype, which the result has; sums are in float32.
        q: of `shape`, (m, n). It has no gradient.

    Cost: that of the product, and a lookup for each number. Memory: a sixteenth of ŵ, where m has
    such a divisor.
    """
    count, inner = _parts(shape), shape[0]
    wide = jnp.float64 if x.dtype == np.dtype("float64") else jnp.float32

    def add(y: Array, piece: tuple[Array, Array, Array]) -> tuple[Array, None]:
        rows, codes, scale = piece
        w = _dense(codes, scale, (inner // count, shape[1])).astype(x.dtype)
        return y + jnp.matmul(rows, w, preferred_element_type=wide), None

    rows = x.reshape(len(x), count, -1).swapaxes(0, 1)
    start = jnp.zeros((len(x), shape[1]), wide)
    return jax.lax.scan(add, start, (rows, *_pieces(q, count)))[0].astype(x.dtype)


def _forward(x: Array, q: Nf4, shape: tuple[int, int]) -> tuple[Array, Nf4]:
    return nf4_matmul(x, q, shape), q


def _backward(shape: tuple[int, int], q: Nf4, g: Array) -> tuple[Array, None]:
    count = _parts(shape)

    def of_piece(piece: tuple[Array, Array]) -> Array:
        w = _dense(*piece, (shape[0] // count, shape[1])).astype(g.dtype)
        return jnp.matmul(g, w.T)

    found = jax.lax.map(of_piece, _pieces(q, count))
    return found.swapaxes(0, 1).reshape(len(g), shape[0]), None


nf4_matmul.defvjp(_forward, _backward)


def _parts(shape: tuple[int, int]) -> int:
    """How many pieces of whole rows and whole blocks a matrix has, 16 at most."""
    m, n = shape
    return next(k for k in range(16, 0, -1) if k == 1 or (m % k == 0 and m // k * n % BLOCK == 0))


def _pieces(q: Nf4, count: int) -> tuple[Array, Array]:
    """Codes, and scales in float32, of each piece."""
    scale = _scales(q.scales, q.steps, q.mean)
    return q.codes.reshape(count, -1), scale.reshape(count, -1)


def _dense(codes: Array, scale: Array, shape: tuple[int, ...]) -> Array:
    found = jnp.stack([codes >> 4, codes & 15], axis=1).reshape(-1)
    numbers = _padded(jnp.asarray(TABLE)[found], BLOCK) * scale[:, None]
    return numbers.reshape(-1)[: math.prod(shape)].reshape(shape)


def nf4_bytes(shape: tuple[int, ...]) -> int:
    """What an array of `shape` takes."""
    count = math.prod(shape)
    blocks = math.ceil(count / BLOCK)
    return math.ceil(count / 2) + blocks + 4 * math.ceil(blocks / GROUP) + 4


def _scales(scales: Array, steps: Array, mean: Array) -> Array:
    units = _padded(scales, GROUP).astype(steps.dtype)
    found = mean + (units * steps[:, None]).reshape(-1)[: len(scales)]
    return jnp.maximum(found, 0)  # the least of a group may be rounded below it


def _padded(x: Array, size: int) -> Array:
    return jnp.pad(x, (0, -len(x) % size)).reshape(-1, size)
