"""Alternating least squares for the element-wise weighted low-rank approximation."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lpaf_jax.linalg.checks import (
    as_floats,
    check_importance,
    check_matrix,
    check_rank,
    check_ridge,
)
from lpaf_jax.linalg.factors import LowRank, balance, matmul
from lpaf_jax.linalg.svd import _weighted_svd

CONVERGED = 0
MAX_SWEEPS = 1
FAILED = 2

_INNER_STEPS = 2


class AlsInfo(NamedTuple):
    """How a solve went.

    Attributes:
      objective: the objective at the start and after each sweep, with the importance scaled to
        mean 1; the last value is repeated to the fixed length max_sweeps + 1.
      gradient_norm: at the end, relative to the gradient's terms before they cancel.
      sweeps: how many were done.
      status: 0 converged; 1 stopped at max_sweeps, still falling; 2 failed: the objective is not
        finite, and the factors returned are the last finite ones.
    """

    objective: Float[Array, " sweeps"]
    gradient_norm: Float[Array, ""]
    sweeps: Int[Array, ""]
    status: Int[Array, ""]


def weighted_als(
    w: Float[Array, "m n"],
    importance: Float[Array, "m n"],
    rank: int,
    *,
    ridge: float = 0.0,
    init: LowRank | None = None,
    max_sweeps: int = 100,
    tol: float = 1e-4,
) -> tuple[LowRank, AlsInfo]:
    """A local minimiser of the exact element-wise weighted objective.

    `argmin_{A,B} Σ_ij I_ij (w_ij − (AB)_ij)² + ridge (‖A‖² + ‖B‖²)`, I scaled to mean 1.
    """
    w, importance = as_floats(w, importance)
    check_matrix(w)
    check_importance(importance, w)
    check_rank(rank, w.shape)
    check_ridge(ridge)
    if init is not None:
        a, b, _ = as_floats(*init, w)
        shapes = ((w.shape[0], rank), (rank, w.shape[1]))
        if (a.shape, b.shape) != shapes:
            raise ValueError(f"init has shapes {a.shape}, {b.shape}; rank {rank} needs {shapes}")
        init = LowRank(a.astype(w.dtype), b.astype(w.dtype))
    penalty, tolerance = jnp.asarray(ridge, w.dtype), jnp.asarray(tol, w.dtype)
    return _weighted_als(w, importance, rank, penalty, init, max_sweeps, tolerance)


class _State(NamedTuple):
    factors: LowRank
    trace: Array
    sweep: Array
    status: Array


@partial(jax.jit, static_argnums=(2, 5))
def _weighted_als(
    w: Array,
    importance: Array,
    rank: int,
    ridge: Array,
    init: LowRank | None,
    max_sweeps: int,
    tol: Array,
) -> tuple[LowRank, AlsInfo]:
    mean = importance.mean()
    weight = importance / jnp.where(mean > 0, mean, 1)
    start = _weighted_svd(w, importance, rank, "separable") if init is None else init

    def objective(f: LowRank) -> Array:
        penalty = jnp.sum(jnp.square(f.a)) + jnp.sum(jnp.square(f.b))
        return jnp.sum(weight * jnp.square(w - f.dense())) + ridge * penalty

    def sweep(state: _State) -> _State:
        a, b = state.factors
        a = _solve_rows(w, weight, ridge, a, b)
        b = _solve_rows(w.T, weight.T, ridge, b.T, a.T).T
        new, old = objective(LowRank(a, b)), state.trace[state.sweep]
        better = new <= old
        status = jnp.where(better & (old - new > tol * old), MAX_SWEEPS, CONVERGED)
        status = jnp.where(jnp.isfinite(new), status, FAILED)
        factors = jax.tree.map(partial(jnp.where, better), LowRank(a, b), state.factors)
        done = jnp.arange(max_sweeps + 1) > state.sweep
        trace = jnp.where(done, jnp.where(better, new, old), state.trace)
        return _State(factors, trace, state.sweep + 1, status)

    def goes_on(state: _State) -> Array:
        return (state.status == MAX_SWEEPS) & (state.sweep < max_sweeps)

    trace = jnp.full(max_sweeps + 1, objective(start))
    first = jnp.where(jnp.isfinite(trace[0]), MAX_SWEEPS, FAILED)
    state = lax.while_loop(goes_on, sweep, _State(start, trace, jnp.int32(0), first))
    factors = balance(state.factors)
    norm = _gradient_norm(w, weight, ridge, factors)
    return factors, AlsInfo(state.trace, norm, state.sweep, state.status)


def _solve_rows(w: Array, weight: Array, ridge: Array, a: Array, b: Array) -> Array:
    """A few steps of conjugate gradients on all row systems of `a` at once, from `a`.

    Each row has its own system, `(B diag(I_i) Bᵀ + ridge) a_i = B diag(I_i) w_i`, and its own
    step; the matrices are never formed.
    """
    gram = matmul(b * weight.mean(axis=0), b.T)
    jitter = ridge + 1e-5 * jnp.trace(gram) / gram.shape[0] + jnp.finfo(w.dtype).tiny
    chol = jnp.linalg.cholesky(gram + jitter * jnp.eye(gram.shape[0], dtype=w.dtype))
    error = w - matmul(a, b)
    direction, before = jnp.zeros_like(a), jnp.ones_like(a[:, :1])
    for step in range(_INNER_STEPS):
        residual = matmul(weight * error, b.T) - ridge * a
        scaled = jax.scipy.linalg.cho_solve((chol, True), residual.T).T
        now = jnp.sum(residual * scaled, axis=1, keepdims=True)
        beta = now / before if step else jnp.zeros_like(now)
        direction = scaled + beta * direction
        image = matmul(direction, b)
        curvature = jnp.sum(weight * image * image, axis=1, keepdims=True)
        curvature += ridge * jnp.sum(direction * direction, axis=1, keepdims=True)
        slope = jnp.sum(residual * direction, axis=1, keepdims=True)
        length = jnp.where(curvature > 0, slope / jnp.where(curvature > 0, curvature, 1), 0)
        a, error = a + length * direction, error - length * image
        before = jnp.where(now > 0, now, 1)
    return a


def _gradient_norm(w: Array, weight: Array, ridge: Array, f: LowRank) -> Any:
    weighted = weight * (w - f.dense())
    gradient = (
        matmul(weighted, f.b.T) - ridge * f.a,
        matmul(f.a.T, weighted) - ridge * f.b,
    )
    terms = (matmul(abs(weighted), abs(f.b.T)), matmul(abs(f.a.T), abs(weighted)))
    size = sum(jnp.sum(jnp.square(t)) for t in terms)
    norm = sum(jnp.sum(jnp.square(g)) for g in gradient)
    return jnp.sqrt(norm / jnp.where(size > 0, size, 1))
