"""How much is added to a second moment so that it can be solved with."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lpaf_jax.linalg.lapack import cholesky

# Where no more is added: of ones on the diagonal only what is not finite needs as much.
_MOST = 1e4


def enough(
    correlation: Float[Array, "m m"], ridge: Float[Array, ""], dead: Bool[Array, " m"]
) -> Float[Array, ""]:
    """The least of λ, 4 λ, 16 λ, ... with half of which the matrix is positive definite.

    A moment that was summed in float32 is semi-definite to rounding of its largest entries; of
    channels far below them, at one scale with the others, that is more than a small ridge.

    Args:
      correlation: ones on its diagonal, or zeros where channels are dead.
      ridge: λ. dead: channels that are never given, which are solved for alone.
    """

    def short(ridge: Array) -> Array:
        added = jnp.diag(jnp.where(dead, 1, ridge / 2))
        return (ridge < _MOST) & ~jnp.isfinite(cholesky(correlation + added)).all()

    found: Array = lax.while_loop(short, lambda ridge: 4 * ridge, lax.stop_gradient(ridge))
    return found
