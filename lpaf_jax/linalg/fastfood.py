"""A random map from few numbers to very many, without a matrix of it.

```python
p = fastfood(jax.random.key(0), 1000, 22_000_000)  # columns of norm 1, nearly orthogonal
params = theta0 + p(theta)  # theta: (1000,)
```
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lpaf_jax.linalg.checks import check_integer

# A side of the small Hadamard matrices that a large one is the product of: 2⁵.
_DIGIT = 5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fastfood:
    """`P θ = (H G Π H B [θ; 0])_{1..D} / √(D Σ g²)`, (d,) to (D,), for any d up to the L of H.

    H is the Hadamard matrix of ±1, L × L, B a diagonal of signs, Π a permutation and G a diagonal
    of normal numbers. The columns of P have norm 1, but for what is left out of the last rows, and
    are nearly orthogonal. A pytree of 3 L numbers, L the least power of two that D and d fit in.
    """

    signs: Float[Array, " l"]
    order: Int[Array, " l"]
    normal: Float[Array, " l"]
    size: int = field(metadata={"static": True})

    def __call__(self, theta: Float[Array, " d"]) -> Float[Array, " size"]:
        """P θ, in O(L log L) FLOP, with an array of L numbers in between.

        Raises:
          ValueError: θ has more numbers than H has columns.
        """
        length = len(self.signs)
        if theta.ndim != 1 or len(theta) > length:
            raise ValueError(f"theta must be a vector of at most {length}, got {theta.shape}")
        # Where θ ends, zeros begin: H repeats what a smaller one makes of the numbers before them.
        short = 1 << (len(theta) - 1).bit_length()
        padded = jnp.zeros(short, theta.dtype).at[: len(theta)].set(theta)
        mixed = hadamard(self.signs[:short] * padded)
        found = hadamard(self.normal * mixed[self.order % short])
        scale = jnp.sqrt(self.size * jnp.sum(jnp.square(self.normal)))
        return found[: self.size] / scale


def fastfood(key: Array, d: int, size: int) -> Fastfood:
    """Draw a map from d numbers to `size`.

    Args:
      key: of the draw. d, size: static.

    Raises:
      ValueError: one of them is less than 1.

    Source: Le, Sarlós & Smola, "Fastfood: approximating kernel expansions in loglinear time"
    (2013); Li et al., "Measuring the intrinsic dimension of objective landscapes" (2018).
    """
    for name, value in (("d", d), ("size", size)):
        check_integer(value, name)
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    length = 1 << (max(d, size) - 1).bit_length()
    of_signs, of_order, of_normal = jax.random.split(key, 3)
    return Fastfood(
        jax.random.rademacher(of_signs, (length,), jnp.float32),
        jax.random.permutation(of_order, length),
        jax.random.normal(of_normal, (length,), jnp.float32),
        size,
    )


def hadamard(x: Float[Array, "*batch l"]) -> Float[Array, "*batch l"]:
    """`x H`, H the Hadamard matrix of ±1 in Sylvester's order; its own inverse times L.

    As products with small Hadamard matrices along the digits of the index, which are matrix
    products and not as many passes over memory as L has bits. No axis is moved for them.

    Raises:
      ValueError: L is no power of two.

    Cost: O(L log L).
    """
    length = x.shape[-1]
    bits = length.bit_length() - 1
    if length != 1 << bits:
        raise ValueError(f"the last axis must be a power of two, got {length}")
    *batch, before = *x.shape[:-1], 1
    for done in range(0, bits, _DIGIT):
        small = _sylvester(min(_DIGIT, bits - done)).astype(x.dtype)
        y = x.reshape(*batch, before, len(small), -1)
        x = jnp.matmul(small, y, precision=jax.lax.Precision.HIGHEST).reshape(*batch, length)
        before *= len(small)
    return x


def _sylvester(bits: int) -> Array:
    """H of 2^bits: an entry is −1 where its row and column have an odd number of bits in common."""
    index = jnp.arange(1 << bits)
    common = jax.lax.population_count(index[:, None] & index[None])
    return 1 - 2 * (common % 2)
