"""A rank-k factorization, its gauge, and its error.

```python
f = svd(w, 32)
y = f.apply(x)  # two thin products instead of x @ w
```
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lpaf_jax.linalg.checks import as_floats


def matmul(a: Array, b: Array) -> Array:
    """`a @ b` in the full precision of the dtype, where a GPU or TPU would round the inputs."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


class LowRank(NamedTuple):
    """`W ≈ a @ b`: a pytree of two factors, with k (m + n) numbers in place of m n."""

    a: Float[Array, "*stack m k"]
    b: Float[Array, "*stack k n"]

    def apply(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """`x @ a @ b` without forming the product: 2 k (m + n) FLOP a row of `x`."""
        return (x @ self.a) @ self.b

    def dense(self) -> Float[Array, "*stack m n"]:
        """The matrix `a @ b`, in full precision."""
        return matmul(self.a, self.b)

    @property
    def rank(self) -> int:
        """k, the inner size."""
        return self.a.shape[-1]

    @property
    def size(self) -> int:
        """How many numbers are stored."""
        return self.a.size + self.b.size


def weighted_error(
    w: Float[Array, "m n"], importance: Float[Array, "m n"], factors: LowRank
) -> Float[Array, ""]:
    """The weighted squared error `Σ_ij I_ij (w_ij − (AB)_ij)²`, of `importance` as given."""
    w, importance, a, b = as_floats(w, importance, *factors)
    return jnp.sum(importance * jnp.square(w - matmul(a, b)))


def balance(factors: LowRank) -> LowRank:
    """The same product with `AᵀA = BBᵀ = diag(singular values of AB)`.

    Among all factors of one product these have the least `‖A‖² + ‖B‖²`, which is why a minimiser
    of a ridge-penalised objective is balanced, and why fine-tuning starts well from them: both
    factors have gradients of one scale.

    Cost: two thin QR factorizations and a k × k SVD, O((m + n) k²).
    """
    a, b = as_floats(*factors)
    qa, ra = jnp.linalg.qr(a)
    qb, rb = jnp.linalg.qr(b.T)
    u, s, vt = jnp.linalg.svd(matmul(ra, rb.T), full_matrices=False)
    root = jnp.sqrt(s)
    return LowRank(matmul(qa, u) * root, root[:, None] * matmul(vt, qb.T))
