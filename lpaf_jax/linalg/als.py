"""Alternating least squares for the element-wise weighted low-rank approximation.

```python
f, info = weighted_als(w, importance, 64)
info.objective[0], info.objective[-1]  # at the start (about the closed form's), and at the end
```
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from lpaf_jax.linalg.arithmetic import matmul, ratio
from lpaf_jax.linalg.checks import (
    as_floats,
    check_at_least_zero,
    check_importance,
    check_init,
    check_matrix,
    check_rank,
)
from lpaf_jax.linalg.factors import LowRank, balance, sharded_like
from lpaf_jax.linalg.randomized import OVERSAMPLE, randomized_svd
from lpaf_jax.linalg.scaling import exponent, from_unit, shift, to_unit
from lpaf_jax.linalg.sharding import on_mesh
from lpaf_jax.linalg.status import Status
from lpaf_jax.linalg.svd import root_weights, svd

# Status as int32, also where x64 is on.
_CONVERGED, _MAX_SWEEPS, _FAILED = (np.int32(status) for status in Status)

# Conjugate-gradient steps a half-sweep. 1, 2 and 3 cost about the same to a given objective; 2 was
# never far from the best on Fisher-like, heavy-tailed and mostly-zero importance.
_STEPS = 2
# An SVD takes as long as 10 to 60 sweeps on a CPU, on a GPU as hundreds. A subspace iteration with
# k + 8 vectors takes about two, and a few more to catch up: it is the start where min(m, n) is at
# least this many times k + 8.
_LARGER = 3
# A ridge of Σ I |W| leaves no factor but 0. For W and I near 1 this is beyond it, and yet its
# products with factors are within float32.
_LARGEST_RIDGE = 2.0**100
# Extrapolation makes the decrease uneven, so it is measured over this many sweeps.
_WINDOW = 5


class AlsInfo(NamedTuple):
    """How a solve went.

    Attributes:
      objective: at the start and after each sweep, for the importance scaled to mean 1; it never
        rises. The last value is repeated to the fixed length max_sweeps + 1. It goes as the square
        of W: where that leaves the dtype it is 0 or inf here, while the solve goes on as ever.
      gradient_norm: at the end; free of units and of the scale of the factors. Its square is
        `Σ g² / 4h` over the entries of A and B, relative to the objective, with g the gradient and
        2h the second derivative: the shares that moving each entry alone would remove, summed.
      sweeps: how many were done.
      status: a `Status`, as int32; `Status(int(info.status)).words` says it. It is FAILED where the
        objective was not finite at the start, or became so in a plain sweep; the factors are then
        the last good ones.
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
    ridge: float | Float[Array, ""] = 0.0,
    init: LowRank | None = None,
    max_sweeps: int = 200,
    tol: float | Float[Array, ""] = 1e-4,
) -> tuple[LowRank, AlsInfo]:
    """A local minimiser of the element-wise weighted error, by accelerated alternating descent.

    `argmin_{A,B} Σ_ij I_ij (w_ij − (AB)_ij)² + ridge (‖A‖² + ‖B‖²)`, I first scaled to mean 1, so
    that a ridge means the same whatever the scale of the importance. The problem is not convex:
    what is found is the local minimum that descent from the start leads to. Where I is zero over
    much of the matrix and ridge is 0, AB is arbitrary there: give I a floor, or set a ridge.

    Each half-sweep takes two conjugate-gradient steps on the row systems
    `(B diag(I_i) Bᵀ + ridge) a_i = B diag(I_i) w_i`, all rows at once, from where they stand, each
    row with its own step length; then the same for the columns of B. The systems are never formed:
    multiplying by all of them is `(I ∘ (P B)) Bᵀ`. Sweeps are extrapolated with Nesterov's
    sequence; one that would raise the objective is undone and the sequence starts anew.

    Works under `jit` and `vmap`, where each matrix of a stack stops by itself. Not differentiable
    in reverse mode.

    Args:
      w: matrix of shape (m, n).
      importance: non-negative, the shape of `w`. Zeros are allowed, whole rows and columns too.
      rank: k, static.
      ridge: at least 0, in units of the mean importance.
      init: factors to start from. Where None, the separable closed form (see `weighted_svd`), found
        by `randomized_svd` where k is below about a third of min(m, n), else by a full SVD.
      max_sweeps: static.
      tol: stop when the objective falls by less than this share of itself a sweep (mean of 5), or
        when the gradient norm is below it. 1e-4 ends about 1 % above the local minimum on hard
        problems, 1e-5 about 0.1 %.

    Returns:
      Balanced factors, never worse than the start, and an `AlsInfo`.

    Raises:
      ValueError: shapes differ, a value is negative or not finite, `rank` is out of range. Under
        tracing values cannot be looked at, and a failure shows as `Status.FAILED`.

    Cost: 18 m n k FLOP a sweep; for the start an SVD, or the 12 m n (k + 8) FLOP of a subspace
    iteration. Memory, beside the inputs and what LAPACK takes for a full SVD: four arrays of the
    size of `w` and five pairs of factors.
    Source: Srebro & Jaakkola, "Weighted low-rank approximations" (2003) for the problem; Mitchell,
    Ye & De Sterck, "Nesterov acceleration of alternating least squares for canonical tensor
    decomposition" (2020) for extrapolation with restarts, here over inexact solves.
    """
    w, importance = as_floats(w, importance)
    check_matrix(w)
    check_importance(importance, w)
    check_rank(rank, w.shape)
    check_at_least_zero(ridge=ridge, tol=tol, max_sweeps=max_sweeps)
    if init is not None:
        init = LowRank(*(factor.astype(w.dtype) for factor in as_floats(*init)))
        check_init(init.a, init.b, w.shape, rank)
    settings = jnp.asarray(ridge, w.dtype), jnp.asarray(tol, w.dtype)
    return on_mesh(
        lambda w, i, init, *settings: _near_one(w, i, rank, init, max_sweeps, *settings),
        w,
        importance,
        init,
        *settings,
        out=(sharded_like(w, w), PartitionSpec()),
    )


@partial(jax.jit, static_argnums=(2, 4))
def _near_one(
    w: Array,
    importance: Array,
    rank: int,
    init: LowRank | None,
    max_sweeps: int,
    ridge: Array,
    tol: Array,
) -> tuple[LowRank, AlsInfo]:
    """The solve with W and I near 1: with W = c V it is that of V under a ridge / c."""
    unit = exponent(w)
    if init is not None:
        of_a, of_b = map(exponent, init)
        half = (of_a + of_b - unit) >> 1  # for each of the two, whatever share of it they have
        init = LowRank(shift(to_unit(init.a, of_a), half), shift(to_unit(init.b, of_b), half))
    w, importance = to_unit(w, unit), to_unit(importance, exponent(importance))
    ridge = jnp.minimum(shift(ridge, -unit), _LARGEST_RIDGE)
    f, info = _weighted_als(w, importance, rank, init, max_sweeps, ridge, tol)
    factors = LowRank(*(shift(x, unit >> 1) for x in f))
    return factors, info._replace(objective=from_unit(info.objective, 2 * unit))


class _State(NamedTuple):
    best: LowRank  # the factors of the least objective so far
    ahead: LowRank  # extrapolated from them: where the next sweep starts
    momentum: Array  # of Nesterov's sequence; at 1, `ahead` is `best`
    trace: Array
    sweep: Array
    status: Array  # _MAX_SWEEPS as long as nothing else has come up


def _weighted_als(
    w: Array,
    importance: Array,
    rank: int,
    init: LowRank | None,
    max_sweeps: int,
    ridge: Array,
    tol: Array,
) -> tuple[LowRank, AlsInfo]:
    weight = _Weight.of(importance)
    start = _start(w, weight, rank, init, ridge)
    # An exact fit falls by a constant share for ever; below this all of it is rounding.
    rounding = jnp.square(10 * jnp.finfo(w.dtype).eps) * weight.squares(weight.root * w).sum()

    steps = jnp.arange(max_sweeps + 1, dtype=jnp.int32)

    def body(state: _State) -> _State:
        new, objective, norm = _sweep(w, weight, ridge, state.ahead)
        old = state.trace[state.sweep]
        kept = objective <= old
        # Without extrapolation only rounding or overflow can keep a sweep from descending.
        stuck = ~kept & (state.momentum == 1)
        momentum = jnp.where(kept, (1 + jnp.sqrt(1 + 4 * jnp.square(state.momentum))) / 2, 1)
        speed = jnp.where(kept, (state.momentum - 1) / momentum, 0)
        best = jax.tree.map(partial(jnp.where, kept), new, state.best)
        ahead = jax.tree.map(lambda now, before: now + speed * (now - before), best, state.best)

        sweep = state.sweep + 1
        value = jnp.where(kept, objective, old)
        trace = jnp.where(steps < sweep, state.trace, value)
        fallen = trace[jnp.maximum(sweep - _WINDOW, 0)] - value
        slow = (sweep >= _WINDOW) & (fallen <= _WINDOW * tol * value)
        done = slow | stuck | (norm <= tol) | (value <= rounding)
        status = jnp.where(done, _CONVERGED, _MAX_SWEEPS)
        status = jnp.where(stuck & ~jnp.isfinite(objective), _FAILED, status)
        return _State(best, ahead, momentum, trace, sweep, status)

    def goes_on(state: _State) -> Array:
        return (state.status == _MAX_SWEEPS) & (state.sweep < max_sweeps)

    first = _objective(weight, ridge, start, weight.error(w, start))
    trace = jnp.full(max_sweeps + 1, first)
    status = jnp.where(jnp.isfinite(first), _MAX_SWEEPS, _FAILED)
    state = _State(start, start, jnp.ones_like(first), trace, jnp.int32(0), status)
    state = lax.while_loop(goes_on, body, state)

    factors = balance(state.best)
    # Under a ridge balancing is a last descent of its own.
    last = _objective(weight, ridge, factors, weight.error(w, factors))
    trace = jnp.where(steps < state.sweep, state.trace, jnp.minimum(state.trace[-1], last))
    norm = _gradient_norm(w, weight, ridge, factors)
    return factors, AlsInfo(trace, norm, state.sweep, state.status)


class _Weight(NamedTuple):
    """The importance in units of its mean, without one more array of the size of W for it.

    The error is multiplied by `root` in its place, and so is the gradient: `I / mean ∘ E` is
    `root (I ∘ (root E))`. One division by the mean would leave float32 if it is near either end.
    """

    importance: Array
    root: Array  # 1 / √mean
    rows: Array  # mean of each row over the mean of all, (m, 1)
    columns: Array  # and of each column, (1, n)

    @classmethod
    def of(cls, importance: Array) -> "_Weight":
        largest = importance.max()
        largest = jnp.where(largest > 0, largest, 1)
        shares = importance / largest
        mean = shares.mean()
        mean = jnp.where(mean > 0, mean, 1)
        rows, columns = (shares.mean(axis=axis, keepdims=True) / mean for axis in (1, 0))
        return cls(importance, 1 / (jnp.sqrt(largest) * jnp.sqrt(mean)), rows, columns)

    def error(self, w: Array, f: LowRank) -> Array:
        """`root (W − AB)`."""
        return self.root * (w - f.dense())

    def squares(self, error: Array) -> Array:
        """`I / mean ∘ (W − AB)²`, from what `error` gives."""
        return self.importance * error * error  # the square alone may leave float32


def _start(w: Array, weight: _Weight, rank: int, init: LowRank | None, ridge: Array) -> LowRank:
    """The factors to start from, in the gauge where the row systems are nearest to diagonal.

    Without a ridge the gauge is free, and one diagonalises both `B diag(c) Bᵀ` and `Aᵀ diag(r) A`,
    where r and c are the mean weights of rows and columns. A ridge asks for the balanced gauge.
    """
    rows, columns = root_weights(weight.rows[:, 0]), root_weights(weight.columns[0])
    if init is None:
        scaled = rows[:, None] * w * columns[None, :]
        far = _LARGER * (rank + OVERSAMPLE) <= min(w.shape)
        start = randomized_svd(scaled, rank, jax.random.key(0)) if far else svd(scaled, rank)
        start = LowRank(start.a / rows[:, None], start.b / columns[None, :])
        return lax.cond(ridge > 0, balance, lambda f: f, start)
    rows, columns = jnp.where(ridge > 0, 1, rows), jnp.where(ridge > 0, 1, columns)
    start = balance(LowRank(rows[:, None] * init.a, init.b * columns[None, :]))
    return LowRank(start.a / rows[:, None], start.b / columns[None, :])


def _sweep(w: Array, weight: _Weight, ridge: Array, f: LowRank) -> tuple[LowRank, Array, Array]:
    """Descend in A, then in B: the new factors, their objective, the gradient norm on the way."""
    rows, columns = weight.rows, weight.columns

    # Half the second derivatives, exact where the importance is separable (its mean is 1).
    curvature = rows * jnp.sum(columns * jnp.square(f.b), axis=1)[None, :] + ridge
    a, error, gain_a = _descend(
        f.a,
        weight.error(w, f),
        weight,
        ridge,
        curvature,
        image=lambda step: matmul(step, f.b),
        adjoint=lambda residual: matmul(residual, f.b.T),
        axis=1,
    )
    curvature = jnp.sum(rows * jnp.square(a), axis=0)[:, None] * columns + ridge
    b, error, gain_b = _descend(
        f.b,
        error,
        weight,
        ridge,
        curvature,
        image=lambda step: matmul(a, step),
        adjoint=lambda residual: matmul(a.T, residual),
        axis=0,
    )
    new = LowRank(a, b)
    objective = _objective(weight, ridge, new, error)
    return new, objective, jnp.sqrt(ratio(gain_a + gain_b, objective))


def _descend(
    x: Array,
    error: Array,
    weight: _Weight,
    ridge: Array,
    curvature: Array,
    *,
    image: Callable[[Array], Array],
    adjoint: Callable[[Array], Array],
    axis: int,
) -> tuple[Array, Array, Array]:
    """A few preconditioned conjugate-gradient steps on all row (axis 1) or column (axis 0) systems.

    The residual is computed anew at each step, from the error that the steps keep up to date: it
    costs no more than the textbook's recurrence and does not drift from the truth in float32.

    Returns the new factor, the new error (see `_Weight.error`), and what the first step's gradient
    promised.
    """
    total = partial(jnp.sum, axis=axis, keepdims=True)
    direction, before, gain = jnp.zeros_like(x), jnp.zeros_like(total(x)), jnp.zeros_like(x[0, 0])
    for step in range(_STEPS):
        residual = weight.root * adjoint(weight.importance * error) - ridge * x
        scaled = ratio(residual, curvature)
        power = total(residual * scaled)
        gain = power.sum() if step == 0 else gain
        direction = scaled + ratio(power, before) * direction
        before = power
        moved = image(weight.root * direction)
        bend = total(weight.squares(moved)) + ridge * total(jnp.square(direction))
        length = ratio(total(residual * direction), bend)
        x, error = x + length * direction, error - length * moved
    return x, error, gain


def _objective(weight: _Weight, ridge: Array, f: LowRank, error: Array) -> Array:
    penalty = jnp.sum(jnp.square(f.a)) + jnp.sum(jnp.square(f.b))
    return jnp.sum(weight.squares(error)) + ridge * penalty


def _gradient_norm(w: Array, weight: _Weight, ridge: Array, f: LowRank) -> Array:
    importance, root = weight.importance, weight.root
    error = weight.error(w, f)
    weighted = importance * error
    down_a = root * matmul(weighted, f.b.T) - ridge * f.a
    down_b = root * matmul(f.a.T, weighted) - ridge * f.b
    bend_a = root * matmul(importance, root * jnp.square(f.b).T) + ridge
    bend_b = root * matmul(root * jnp.square(f.a).T, importance) + ridge
    gain_a = jnp.sum(down_a * ratio(down_a, bend_a))
    gain_b = jnp.sum(down_b * ratio(down_b, bend_b))
    return jnp.sqrt(ratio(gain_a + gain_b, _objective(weight, ridge, f, error)))
