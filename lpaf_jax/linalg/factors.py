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
from lpaf_jax.linalg.lapack import qr, thin_svd
from lpaf_jax.linalg.sharding import axis_specs, on_mesh


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

    Differentiable as `svd` is: what is computed from the product has the right derivative.

    Cost: two thin QR factorizations and a k × k SVD, O((m + n) k²).
    """
    a, b = as_floats(*factors)
    return on_mesh(_balance, a, b, out=sharded_like(a, b))


@jax.custom_jvp
def _balance(a: Array, b: Array) -> LowRank:
    u, s, vt = _svd_of_product(a, b)
    return from_svd(u, s, vt)


@_balance.defjvp
def _balance_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[LowRank, LowRank]:
    (a, b), (da, db) = primals, tangents
    u, s, vt = _svd_of_product(a, b)
    images = matmul(da, matmul(b, vt.T)) + matmul(a, matmul(db, vt.T))
    preimages = matmul(matmul(u.T, da), b) + matmul(matmul(u.T, a), db)
    core = matmul(u.T, images)
    tangent = lift(u, s, vt, core, images - matmul(u, core), preimages - matmul(core, vt))
    return from_svd(u, s, vt), tangent


def sharded_like(w: Array, other: Array) -> LowRank:
    """Specs of factors whose rows are sharded as those of w, and columns as those of `other`."""
    return LowRank(axis_specs(w)[0], axis_specs(other)[1])  # type: ignore[arg-type]


def from_svd(u: Array, s: Array, vt: Array) -> LowRank:
    """Balanced factors of `u diag(s) vt`."""
    root = jnp.sqrt(s)
    return LowRank(u * root, root[:, None] * vt)


def lift(u: Array, s: Array, vt: Array, core: Array, left: Array, right: Array) -> LowRank:
    """Tangents of `from_svd(u, s, vt)` whose product moves by `u core vt + left vt + u right`.

    The factors themselves turn without limit where singular values meet, the product does not.
    Of all tangents of the factors that move the product as asked, this takes the shortest, so
    nothing is divided by a gap between singular values. `left` is orthogonal to u, `right` to vt.
    """
    root = jnp.sqrt(s)
    both = ratio(core, s[:, None] + s)
    inverse = ratio(jnp.ones_like(root), root)
    return LowRank(
        matmul(u, both * root) + left * inverse,
        matmul(root[:, None] * both, vt) + inverse[:, None] * right,
    )


def ratio(x: Array, y: Array) -> Array:
    """`x / y`, and 0 where y is 0 (y is nowhere negative)."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


def _svd_of_product(a: Array, b: Array) -> tuple[Array, Array, Array]:
    qa, ra = qr(a)
    qb, rb = qr(b.T)
    u, s, vt = thin_svd(matmul(ra, rb.T))
    return matmul(qa, u), s, matmul(vt, qb.T)
