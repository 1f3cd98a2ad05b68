"""Low-rank approximation in a metric of inputs and of outputs: still one truncated SVD.

```python
f = metric_svd(w, 64, left=x.T @ x / len(x))  # the least error of the outputs x @ w
```
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lpaf_jax.linalg.arithmetic import matmul, ratio
from lpaf_jax.linalg.checks import as_floats, check_matrix, check_metric, check_rank, check_share
from lpaf_jax.linalg.factors import LowRank, balance_product, sharded_like
from lpaf_jax.linalg.lapack import eigh
from lpaf_jax.linalg.scaling import at_unit_scale, exponent, shift
from lpaf_jax.linalg.sharding import on_mesh
from lpaf_jax.linalg.svd import root_weights, truncate

# How many times the median a diagonal entry of a metric may be before it is scaled down. Anything
# from 2⁴ to 2¹⁶ does as well; real spectra fall by about this much.
_MASSIVE = 2.0**10


def metric_svd(
    w: Float[Array, "m n"],
    rank: int,
    left: Float[Array, " m"] | Float[Array, "m m"] | None = None,
    right: Float[Array, " n"] | Float[Array, "n n"] | None = None,
    *,
    floor: float | Float[Array, ""] | None = None,
    balanced: bool = True,
) -> LowRank:
    """The best rank-k approximation where inputs, outputs or both have a metric.

    Solves `argmin_{A,B} ‖L^{1/2} (W − AB) R^{1/2}‖_F = argmin tr(L (W − AB) R (W − AB)ᵀ)` exactly,
    by the truncated SVD of `L^{1/2} W R^{1/2}`. With None the identity, x the inputs of the layer
    and g the gradients of the loss at its outputs `y = x W`, this is

    - plain SVD:          L = R = None
    - FWSVD:              L the row sums of `E[(∂loss/∂W)²]`, a vector
    - activation-aware:   L = E[x xᵀ], the least error of the outputs `E‖x W − x A B‖²`
    - output-aware:       R = E[g gᵀ], the least first-order change of the loss, x taken as white
    - Kronecker-factored Fisher: both, `E[(xᵀ (W − AB) g)²]` if x and g are independent

    There is no ridge here: with one, the problem has no closed form but for uniform importance,
    L and R multiples of the identity, where the singular values are soft-thresholded (see
    `weighted_als`).

    A matrix metric is taken apart by a symmetric eigendecomposition of `(L + Lᵀ)/2`, the only part
    of it that the objective sees. Its eigenvalues, like the entries of a vector, are held at or
    above `floor` times the largest. So a singular metric is fine: what lies in its null space is
    fitted with what the others leave unused, and an L of zero is taken as the identity. Negative
    eigenvalues are floored too: rounding makes them, and a matrix that is truly indefinite is
    replaced by the nearest that is not.

    Args:
      w: matrix of shape (m, n).
      rank: k, static.
      left: L, metric of the inputs: a non-negative vector (its diagonal) or a symmetric positive
        semi-definite matrix. Its scale is irrelevant.
      right: R, metric of the outputs, likewise.
      floor: in (0, 1], for both; at 1 every metric is the identity. By default machine epsilon, for
        a matrix that of the dtype in which it comes if that is the larger: to about this share of
        the largest are the eigenvalues known (those of singular float32 covariances came out within
        1.2 epsilon of zero for m from 32 to 768, in bfloat16 within 0.1), while a larger floor
        would level the true differences that few strong features leave to the rest. Massive
        channels, of more than 1000 times the median on the diagonal, are scaled down to that for
        the default floor and the eigendecomposition: every entry of a moment is known to its own
        precision, and the eigenvalues of the scaled matrix are those that can be told from zero.

      balanced: static. False leaves the columns of A and the rows of B in the order of what they
        are worth in the metric: the first j of them are then the best approximation of rank j, for
        every j up to k.

    Returns:
      Balanced factors, unless they are to stay in order.

    Raises:
      ValueError: a metric has a wrong shape or values that are not finite, is visibly not symmetric
        (beyond 2⁻⁶ of its largest entry, more than bfloat16 could explain) or has negative diagonal
        entries; `w` is not a finite matrix; `rank` or `floor` is out of range.

    Derivatives in `w` and in both metrics are those of the product AB (see `svd`), finite where
    eigenvalues repeat; the level of the floor is held constant.

    Cost: one full SVD; for each matrix metric an eigendecomposition, about 9 m³ FLOP, and
    2 m² (n + k) FLOP of products, m (or n) its size.
    Source: Eckart & Young (1936), in other coordinates. For L = E[x xᵀ] Chen et al., "DRONE:
    data-aware low-rank compression for large NLP models" (2021) and Wang et al., "SVD-LLM:
    truncation-aware singular value decomposition for large language model compression" (2024),
    which whitens by Cholesky; the eigendecomposition here is what no singular covariance breaks.
    """
    (w,) = as_floats(w)
    check_matrix(w)
    check_rank(rank, w.shape)
    metrics = [
        jnp.ones(size, w.dtype) if metric is None else jnp.asarray(metric)
        for metric, size in zip((left, right), w.shape, strict=True)
    ]
    w, *solved = as_floats(w, *metrics)
    for metric, size, name in zip(solved, w.shape, ("left", "right"), strict=True):
        check_metric(metric, size, name)
    floors = [
        jnp.asarray(_resolution(metric, w.dtype) if floor is None else floor, w.dtype)
        for metric in metrics
    ]
    for level in floors:
        check_share(floor=level)
    return on_mesh(
        lambda w, metrics, floors: _metric_svd(w, rank, metrics, floors, floor is None, balanced),
        w,
        solved,
        floors,
        out=sharded_like(w, w),
    )


def _resolution(metric: Array, dtype: Any) -> float:
    """To what share of the largest the eigenvalues, or diagonal entries, of `metric` are known."""
    eps = float(jnp.finfo(dtype).eps)
    # A vector has each weight to its own precision, in a matrix all are mixed in every entry.
    if metric.ndim == 1 or not jnp.issubdtype(metric.dtype, jnp.floating):
        return eps
    return max(eps, float(jnp.finfo(metric.dtype).eps))


@partial(jax.jit, static_argnums=(1, 4, 5))
def _metric_svd(
    w: Array, rank: int, metrics: list[Array], floors: list[Array], levelled: bool, balanced: bool
) -> LowRank:
    def solve(w: Array, left: Array, right: Array, *floors: Array) -> LowRank:
        (into_left, from_left), (into_right, from_right) = (
            _whitener(metric, floor, levelled)
            for metric, floor in zip((left, right), floors, strict=True)
        )
        f = truncate(into_right(into_left(w).T).T, rank)
        a, b = from_left(f.a), from_right(f.b.T).T
        return balance_product(a, b) if balanced else LowRank(a, b)

    return at_unit_scale(solve, (w,), metrics, floors)


def _whitener(
    metric: Array, floor: Array, levelled: bool
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """`x ↦ T x` with `TᵀT = metric`, floored, over its largest eigenvalue; and `x ↦ T⁻¹ x`.

    Where levelled, T is that of the metric with its massive channels scaled down, times the scales.
    """
    strengths = lax.stop_gradient(metric if metric.ndim == 1 else jnp.diagonal(metric))
    scales = _massive(strengths) if levelled else jnp.ones_like(strengths)
    if metric.ndim == 1:
        root = (scales * root_weights(metric / jnp.square(scales), floor))[:, None]
        return lambda x: root * x, lambda x: x / root
    column = scales[:, None]
    symmetric = (metric / 2 + metric.T / 2) / column / scales[None, :]
    s, q = eigh(lax.stop_gradient(symmetric))
    whiten, colour = _whitening(_rotated(symmetric, s, q), q, floor)
    return lambda x: matmul(whiten, column * x), lambda x: matmul(colour, x) / column


def _massive(strengths: Array) -> Array:
    """By what to divide each channel: a power of two where one is far above the others, else 1."""
    usual = jnp.nanmedian(jnp.where(strengths > 0, strengths, jnp.nan))
    excess = ratio(jnp.maximum(strengths, 0), _MASSIVE * usual)
    above = jnp.maximum(exponent(excess[:, None], axis=1)[:, 0], 0)
    return shift(jnp.ones_like(strengths), above >> 1)


@jax.custom_jvp
def _rotated(metric: Array, s: Array, q: Array) -> Array:
    """`Qᵀ L Q`, for Q the eigenvectors of L: the diagonal matrix of its eigenvalues s."""
    return jnp.diag(s)


@_rotated.defjvp
def _rotated_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """Q stays where it is: a matrix that moves is no longer diagonal."""
    return _rotated(*primals), matmul(primals[2].T, matmul(tangents[0], primals[2]))


@jax.custom_jvp
def _whitening(rotated: Array, q: Array, floor: Array) -> tuple[Array, Array]:
    """T and T⁻¹, not symmetric roots but `diag(√s) Qᵀ` and `Q diag(1/√s)`.

    Rotated back by Q, the rounding of the directions with the smallest s would reach all others.
    """
    root = root_weights(jnp.diagonal(rotated), floor)
    return root[:, None] * q.T, q / root[None, :]


@_whitening.defjvp
def _whitening_jvp(
    primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Of all tangents of T with `dTᵀ T + Tᵀ dT = dH`, the one for which `dT T⁻¹` is symmetric.

    They differ by rotations of the whitened matrix, which the product AB does not see. H is L with
    its floor f, over its largest eigenvalue. Its excess N = H − f is the positive part of L − f,
    and N − (L − f), which is the negative part, is orthogonal to it. Hence

        |L − f| dH + dH |L − f| = N dL + dL N,    |L − f| = 2 N − (L − f),

    in which nothing is divided by a gap between eigenvalues.
    """
    (rotated, q, floor), change = primals, tangents[0]
    whiten, colour = _whitening(rotated, q, floor)
    s = lax.stop_gradient(jnp.diagonal(rotated))
    shares, changed = ratio(rotated, s[-1]), ratio(change, s[-1])
    into, back = matmul(whiten, q), matmul(q.T, colour)
    eye = jnp.eye(len(s), dtype=s.dtype)
    excess = matmul(into.T, into) - floor * eye
    size = 2 * excess - shares + floor * eye
    sizes = jnp.abs(jnp.diagonal(shares) - floor)

    def equation(x: Array) -> Array:
        return matmul(size, x) + matmul(x, size)

    def solve(equation: object, aim: Array) -> Array:
        return ratio(aim, sizes[:, None] + sizes[None, :])

    aim = matmul(excess, changed) + matmul(changed, excess)
    moved = lax.custom_linear_solve(equation, aim, solve, solve)
    half = matmul(back.T, matmul(moved, back)) / 2
    return (whiten, colour), (matmul(half, whiten), -matmul(colour, half))
