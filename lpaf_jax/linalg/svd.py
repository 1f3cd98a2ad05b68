"""Low-rank approximations in closed form: by one truncated SVD."""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lpaf_jax.linalg.checks import as_floats, check_importance, check_matrix, check_rank
from lpaf_jax.linalg.factors import LowRank, balance_product, sharded_like
from lpaf_jax.linalg.frames import balanced, leading_frame
from lpaf_jax.linalg.scaling import at_unit_scale
from lpaf_jax.linalg.sharding import on_mesh

Sharing = Literal["row", "column", "separable"]


def svd(w: Float[Array, "m n"], rank: int) -> LowRank:
    """The best rank-k approximation, `argmin_{A,B} ‖W − AB‖_F`, with balanced factors.

    Args:
      w: matrix of shape (m, n); half precision and integers are solved in float32.
      rank: k, static, between 1 and min(m, n).

    Raises:
      ValueError: `w` is not a finite matrix, or `rank` is out of range.

    Derivatives of any order are those of the product AB: right for whatever is computed from it,
    and finite where singular values repeat. The factors alone have none, being free up to a
    rotation there.

    Cost: one full SVD, O(m n min(m, n)).
    Source: Eckart & Young, "The approximation of one matrix by another of lower rank" (1936).
    """
    (w,) = as_floats(w)
    check_matrix(w)
    check_rank(rank, w.shape)
    return on_mesh(lambda w: _svd(w, rank), w, out=sharded_like(w, w))


def weighted_svd(
    w: Float[Array, "m n"],
    importance: Float[Array, "m n"],
    rank: int,
    sharing: Sharing = "row",
) -> LowRank:
    """The best rank-k approximation under an importance that rows, columns or both share.

    Solves `argmin_{A,B} Σ_ij r_i c_j (w_ij − (AB)_ij)²` exactly, where

    - "row":       `r_i = Σ_j I_ij`, `c = 1` (FWSVD, and the paper's sparsity-aware SVD)
    - "column":    `r = 1`, `c_j = Σ_i I_ij`
    - "separable": both, the product closest to I in Kullback-Leibler divergence

    by the truncated SVD of `diag(√r) W diag(√c)`. The square root is what turns a weight in the
    objective into a scale of the residual. There is no ridge here: with one, the problem has no
    closed form (see `weighted_als`).

    Rows and columns of no weight are undetermined. Weights are therefore held at or above machine
    epsilon times the largest, which fits such rows with what the others leave unused.

    Args:
      w: matrix of shape (m, n).
      importance: non-negative, the shape of `w`; its scale is irrelevant.
      rank: k, static.
      sharing: static.

    Returns:
      Balanced factors.

    Raises:
      ValueError: shapes differ, a value is negative or not finite, `rank` is out of range.

    Cost: one full SVD and O((m + n) k²).
    Source: Hsu et al., "Language model compression with weighted low-rank factorization" (2022).
    """
    w, importance = as_floats(w, importance)
    check_matrix(w)
    check_importance(importance, w)
    check_rank(rank, w.shape)
    if sharing not in get_args(Sharing):
        raise ValueError(f"sharing must be one of {get_args(Sharing)}, got {sharing!r}")
    return on_mesh(
        lambda w, importance: _weighted_svd(w, importance, rank, sharing),
        w,
        importance,
        out=sharded_like(w, w),
    )


def root_weights(
    weights: Float[Array, " m"], floor: Float[Array, ""] | None = None
) -> Float[Array, " m"]:
    """√(weights / largest), floored at √floor (√eps); all 1 where no weight is above zero."""
    largest = weights.max()
    shares = jnp.where(largest > 0, weights / jnp.where(largest > 0, largest, 1), 1)
    return jnp.sqrt(jnp.maximum(shares, jnp.finfo(weights.dtype).eps if floor is None else floor))


@partial(jax.jit, static_argnums=1)
def _svd(w: Array, rank: int) -> LowRank:
    return at_unit_scale(partial(truncate, rank=rank), (w,))


def truncate(w: Array, rank: int) -> LowRank:
    """`svd`, for a matrix near unit scale."""
    return LowRank(*balanced(leading_frame(w, rank)))


@partial(jax.jit, static_argnums=(2, 3))
def _weighted_svd(w: Array, importance: Array, rank: int, sharing: Sharing) -> LowRank:
    def solve(w: Array, importance: Array) -> LowRank:
        rows, columns = jnp.ones_like(w[:, 0]), jnp.ones_like(w[0])
        if sharing != "column":
            rows = root_weights(importance.sum(axis=1))
        if sharing != "row":
            columns = root_weights(importance.sum(axis=0))
        f = truncate(rows[:, None] * w * columns[None, :], rank)
        return balance_product(f.a / rows[:, None], f.b / columns[None, :])

    return at_unit_scale(solve, (w,), (importance,))
