"""QR, SVD, Cholesky and eigenvalues, one matrix at a time even under `vmap`.

A batched LAPACK call of jaxlib splits its batch over the thread pool that XLA runs on and waits.
Two such calls that depend on nothing of each other are started at once, and on a CPU of two cores
each then holds a thread that the other waits for: the program hangs (jaxlib 0.10.2). One at a time
costs nothing: on a CPU each call has its own threads, and a GPU works through a batch of matrices
beyond 32 × 32 one by one too.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float


@sequential_vmap
def qr(x: Float[Array, "m k"]) -> tuple[Float[Array, "m r"], Float[Array, "r k"]]:
    """`x = q @ r`, r = min(m, k)."""
    q, r = jnp.linalg.qr(x)
    return q, r


@sequential_vmap
def thin_svd(
    x: Float[Array, "m n"],
) -> tuple[Float[Array, "m r"], Float[Array, " r"], Float[Array, "r n"]]:
    """`x = u @ diag(s) @ vt`, r = min(m, n), s falling."""
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    return u, s, vt


@sequential_vmap
def eigh(x: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """`(x + xᵀ) / 2 = q @ diag(s) @ qᵀ`, s rising."""
    s, q = jnp.linalg.eigh(x)
    return s, q


@sequential_vmap
def cholesky(x: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """The lower triangle L of a positive definite `x = L Lᵀ`; not finite where it is none."""
    return jnp.linalg.cholesky(x)


@sequential_vmap
def solve_positive(x: Float[Array, "m m"], y: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """`x⁻¹ y` of a positive definite x, by Cholesky; not finite where it is none."""
    found: Array = cho_solve((jnp.linalg.cholesky(x), True), y)
    return found


def singular_values_of_each(x: Float[Array, "*stack m n"]) -> Float[Array, "*stack r"]:
    """The singular values of every matrix of a stack, falling."""
    one = sequential_vmap(lambda w: jnp.linalg.svd(w, compute_uv=False))
    for _ in x.shape[:-2]:
        one = jax.vmap(one)
    return one(x)
