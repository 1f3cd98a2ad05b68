"""The nearest sum of Kronecker products, and how it applies itself.

```python
f = nearest_kronecker(w, ((24, 48), (16, 32)), 2)  # 384 × 1536 in 2 (1152 + 512) numbers
y = f.apply(x)  # two small products a term instead of x @ w
```
"""

import math
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from lpaf_jax.linalg.checks import as_floats, check_matrix, check_rank, check_sides
from lpaf_jax.linalg.sharding import on_mesh
from lpaf_jax.linalg.svd import svd


class Kronecker(NamedTuple):
    """`W ≈ Σ_t a_t ⊗ b_t`, entry `((i, k), (j, l))` of it being `Σ_t a_tij b_tkl`.

    A pytree of two factors, with r (m1 n1 + m2 n2) numbers in place of m1 m2 n1 n2. The order of
    rows and columns is that of `numpy.kron`: the index into `a` is the slow one.
    """

    a: Float[Array, "*stack r m1 n1"]
    b: Float[Array, "*stack r m2 n2"]

    def apply(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """`x @ dense()` without forming a Kronecker product, for m = m1 m2 and n = n1 n2.

        The side whose small product comes out cheaper is contracted first:
        2 `cost` FLOP a row of `x`, with r m1 n2 or r m2 n1 numbers a row in between. For a stack
        use `jax.vmap`.
        """
        (_, m1, n1), (_, m2, n2) = self.a.shape, self.b.shape
        x = x.reshape(*x.shape[:-1], m1, m2)
        if m1 * n2 * (m2 + n1) <= m2 * n1 * (m1 + n2):
            half = jnp.einsum("...ik,tkl->...itl", x, self.b)
            y = jnp.einsum("...itl,tij->...jl", half, self.a)
        else:
            half = jnp.einsum("...ik,tij->...ktj", x, self.a)
            y = jnp.einsum("...ktj,tkl->...jl", half, self.b)
        return y.reshape(*y.shape[:-2], n1 * n2)

    def dense(self) -> Float[Array, "*stack m n"]:
        """The matrix `Σ_t a_t ⊗ b_t`, in full precision."""
        precision = jax.lax.Precision.HIGHEST
        w = jnp.einsum("...tij,...tkl->...ikjl", self.a, self.b, precision=precision)
        *stack, m1, m2, n1, n2 = w.shape
        return w.reshape(*stack, m1 * m2, n1 * n2)

    @property
    def rank(self) -> int:
        """r, the number of terms."""
        return self.a.shape[-3]

    @property
    def cost(self) -> int:
        """Multiplications that `apply` takes for a row of x."""
        return self.cost_of(self.a.shape[-3:], self.b.shape[-3:])

    @staticmethod
    def cost_of(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        """`r min(m1 n2 (m2 + n1), m2 n1 (m1 + n2))`, of shapes (r, m1, n1) and (r, m2, n2)."""
        (r, m1, n1), (_, m2, n2) = a, b
        return r * min(m1 * n2 * (m2 + n1), m2 * n1 * (m1 + n2))

    @property
    def size(self) -> int:
        """How many numbers are stored."""
        return self.a.size + self.b.size


def kronecker_shapes(m: int, n: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """((m1, n1), (m2, n2)) with m1 m2 = m and n1 n2 = n, of which one term has fewest numbers.

    That is m1 n1 + m2 n2, least where both are near √(m n). Of equal ones m1 is nearest to √m, so
    that neither factor is a row or a column: (24, 32) and (16, 48) for a matrix of 384 × 1536.

    Raises:
      ValueError: a side is less than 1.

    Cost: O(√m + √n) and the pairs of their divisors.
    """
    for side in (m, n):
        if side < 1:
            raise ValueError(f"sides must be at least 1, got {(m, n)}")

    def order(of: tuple[int, int]) -> tuple[int, float, int]:
        m1, n1 = of
        return m1 * n1 + (m // m1) * (n // n1), abs(math.log(m1 * m1 / m)), -m1

    m1, n1 = min(product(_divisors(m), _divisors(n)), key=order)
    return (m1, n1), (m // m1, n // n1)


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def nearest_kronecker(
    w: Float[Array, "m n"], shape: tuple[tuple[int, int], tuple[int, int]], rank: int
) -> Kronecker:
    """The best sum of r Kronecker products, `argmin_{A,B} ‖W − Σ_t A_t ⊗ B_t‖_F`, exactly.

    Rearranged so that each block of shape (m2, n2) of W becomes a row, a Kronecker product is an
    outer product `vec(A) vec(B)ᵀ`: the problem is that of the best rank-r approximation of a matrix
    (m1 n1, m2 n2). Its singular values beyond the r-th are the error, `‖·‖_F² = Σ_{t>r} σ_t²`.

    Args:
      w: matrix of shape (m, n) = (m1 m2, n1 n2); half precision and integers are solved in float32.
      shape: ((m1, n1), (m2, n2)), the shapes of one A and one B, static.
      rank: r, static, between 1 and min(m1 n1, m2 n2); at the upper end the sum is W.

    Returns:
      Terms of falling size `‖A_t ⊗ B_t‖ = σ_t`, balanced: `‖A_t‖ = ‖B_t‖ = √σ_t`. The A are
      orthogonal to each other, and so are the B.

    Raises:
      ValueError: `w` is not a finite matrix, `shape` does not multiply to its shape, or `rank` is
        out of range.

    Derivatives are those of the sum, as in `svd`: right for whatever is computed from `dense()` or
    `apply(x)`, and finite where singular values repeat.

    Cost: one full SVD, O(m n min(m1 n1, m2 n2)).
    Source: Van Loan & Pitsianis, "Approximation with Kronecker products" (1993).
    """
    (w,) = as_floats(w)
    check_matrix(w)
    if len(shape) != 2 or any(np.shape(sides) != (2,) for sides in shape):
        raise ValueError(f"shape must be ((m1, n1), (m2, n2)), got {shape}")
    (m1, n1), (m2, n2) = shape
    check_sides((m1, m2), (n1, n2), w)
    check_rank(rank, (m1 * n1, m2 * n2))

    def solve(w: Array) -> Kronecker:
        blocks = w.reshape(m1, m2, n1, n2).transpose(0, 2, 1, 3)
        f = svd(blocks.reshape(m1 * n1, m2 * n2), rank)
        return Kronecker(f.a.T.reshape(rank, m1, n1), f.b.reshape(rank, m2, n2))

    return on_mesh(solve, w, out=PartitionSpec())
