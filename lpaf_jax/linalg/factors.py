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

from lpaf_jax.linalg.arithmetic import matmul
from lpaf_jax.linalg.checks import as_floats
from lpaf_jax.linalg.frames import balanced, product_frame
from lpaf_jax.linalg.scaling import at_unit_scale, exponent, from_unit, shift, to_unit
from lpaf_jax.linalg.sharding import axis_specs, on_mesh


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
    units = [exponent(x) for x in (w, importance, a, b)]
    w, importance, a, b = map(to_unit, (w, importance, a, b), units)
    # The matrix and the product in the larger of their units, and then what is left in its own.
    of_w, of_importance, of_product = units[0], units[1], units[2] + units[3]
    common = jnp.maximum(of_w, of_product)
    rest = shift(w, of_w - common) - shift(matmul(a, b), of_product - common)
    own = exponent(rest)
    return from_unit(
        jnp.sum(importance * jnp.square(to_unit(rest, own))), of_importance + 2 * (common + own)
    )


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


@jax.jit
def _balance(a: Array, b: Array) -> LowRank:
    return at_unit_scale(balance_product, (a, b))


def balance_product(a: Array, b: Array) -> LowRank:
    """`balance`, for factors near unit scale."""
    return LowRank(*balanced(product_frame(a, b)))


def sharded_like(w: Array, other: Array) -> LowRank:
    """Specs of factors whose rows are sharded as those of w, and columns as those of `other`."""
    return LowRank(axis_specs(w)[0], axis_specs(other)[1])  # type: ignore[arg-type]
