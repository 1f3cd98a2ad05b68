"""Which entries of a matrix can be zero, and what the others then make up for."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from lpaf_jax.linalg.arithmetic import matmul
from lpaf_jax.linalg.checks import as_floats, check_matrix, check_metric, check_share
from lpaf_jax.linalg.lapack import cholesky, solve_positive
from lpaf_jax.linalg.scaling import exponent, from_unit, to_unit
from lpaf_jax.linalg.sharding import on_mesh


def sparsegpt(
    w: Float[Array, "m n"],
    second: Float[Array, "m m"],
    kept: float,
    *,
    ridge: float | Float[Array, ""] = 0.01,
    block: int = 128,
) -> Float[Array, "m n"]:
    """W with a share of its entries left, those moved to where `y = x W` changes little.

    Looks for `min_T tr (W − T)ᵀ H (W − T)` over the T with that share of entries, where
    `H = C + λ c I`, `C = E[xᵀx]` and c is the mean of its diagonal. Too hard to solve; here inputs
    are decided on in their order, `block` of them at a time, and never again. With U the upper
    triangle of `H⁻¹ = Uᵀ U`, those entries of the block go whose `w_ij² / U_ii²` is least, and what
    a row i loses is made up for by the inputs after it,

        W[i:] ← W[i:] − U[i, i:]ᵀ e / U_ii,    e the entries of row i that go.

    Args:
      w: matrix of shape (m, n).
      second: C, symmetric positive semi-definite.
      kept: static; share of the entries that is left of each block, in (0, 1], rounded to entries.
      ridge: λ in (0, 1].
      block: static; inputs that are decided on together.

    Returns:
        The matrix, zero where entries have gone. An input that is never given has none left.

    Raises:
      ValueError: shapes do not fit, a value is not finite, C is visibly not symmetric or has
        negative diagonal entries, or a share is out of range.

    Cost: 7/3 m³ + 2 m² n FLOP, and the entries of each block sorted.
    Source: Frantar & Alistarh, "SparseGPT: massive language models can be accurately pruned in
    one-shot" (2023).
    """
    w, second = as_floats(w, second)
    check_matrix(w)
    check_metric(second, len(w), "second")
    if second.ndim != 2:
        raise ValueError(f"second must be ({len(w)}, {len(w)}), got {second.shape}")
    share = jnp.asarray(ridge, w.dtype)
    check_share(ridge=share, kept=jnp.asarray(kept))
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    return on_mesh(
        lambda w, second, share: _prune(w, second, share, float(kept), min(block, len(w))),
        w,
        second,
        share,
        out=PartitionSpec(),
    )


@partial(jax.jit, static_argnums=(3, 4))
def _prune(w: Array, second: Array, ridge: Array, kept: float, block: int) -> Array:
    m, n = w.shape
    unit = exponent(w)
    w, second = to_unit(w, unit), to_unit(second, exponent(second))
    strengths = jnp.maximum(jnp.diagonal(second), 0)
    dead = strengths == 0
    mean = jnp.mean(strengths)
    system = second / 2 + second.T / 2 + jnp.diag(jnp.where(dead, 1, ridge * mean))
    upper = cholesky(solve_positive(system, jnp.eye(m, dtype=w.dtype))).T
    # Rows that fill up the last block make up for nothing and are cut off at the end.
    spare = -m % block
    upper = jnp.pad(upper, ((0, spare), (0, spare)))
    upper = upper.at[jnp.arange(m, m + spare), jnp.arange(m, m + spare)].set(1)
    rows = jnp.pad(jnp.where(dead[:, None], 0, w), ((0, spare), (0, 0)))
    real = jnp.arange(m + spare) < m

    def decide(i: Array, rows: Array) -> Array:
        start = i * block
        part = lax.dynamic_slice_in_dim(rows, start, block)
        across = lax.dynamic_slice_in_dim(upper, start, block)
        within = lax.dynamic_slice_in_dim(across, start, block, axis=1)
        here = lax.dynamic_slice_in_dim(real, start, block)
        worth = (part / jnp.diagonal(within)[:, None]) ** 2
        worth = jnp.where(here[:, None], worth, -1).reshape(-1)
        # Those beyond the last row have gone before any other.
        gone = block * n - jnp.round(jnp.sum(here).astype(w.dtype) * (kept * n)).astype(jnp.int32)
        place = jnp.zeros(block * n, jnp.int32).at[jnp.argsort(worth)].set(jnp.arange(block * n))
        left = (place >= gone).reshape(block, n)

        def settle(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            part, lost = state
            row = part[j]
            error = jnp.where(left[j], 0, row) / within[j, j]
            # Above the diagonal alone: U is zero below it.
            return part - jnp.outer(within[j], error), lost.at[j].set(error)

        part, lost = lax.fori_loop(0, block, settle, (part, jnp.zeros_like(part)))
        later = jnp.where(jnp.arange(m + spare) >= start + block, across, 0)
        rows = rows - matmul(later.T, lost)
        return lax.dynamic_update_slice_in_dim(rows, jnp.where(left, part, 0), start, axis=0)

    return from_unit(lax.fori_loop(0, (m + spare) // block, decide, rows)[:m], unit)
