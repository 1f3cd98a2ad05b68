"""Which input channels of a matrix can go, and what the others then make up for."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from lpaf_jax.linalg.arithmetic import matmul
from lpaf_jax.linalg.checks import as_floats, check_matrix, check_metric, check_share
from lpaf_jax.linalg.lapack import solve_positive
from lpaf_jax.linalg.ridge import enough
from lpaf_jax.linalg.scaling import exponent, to_unit
from lpaf_jax.linalg.sharding import on_mesh


class Elimination(NamedTuple):
    """What `eliminate_channels` found.

    Attributes:
        order: (m / unit,) the channels, the first to go first.
        errors: (m / unit,) what the loss rises by as each goes, in that order.
    """

    order: Int[Array, " c"]
    errors: Float[Array, " c"]


def eliminate_channels(
    w: Float[Array, "m n"],
    second: Float[Array, "m m"],
    right: Float[Array, "n n"] | None = None,
    *,
    ridge: float | Float[Array, ""] = 0.01,
    block: int = 32,
    unit: int = 1,
) -> Elimination:
    """An order in which input channels of `y = x W` go, the loss rising little with each.

    To do without a set S of channels costs `min_T tr (W − T)ᵀ C' (W − T) R` over the T whose rows
    in S are zero: the others make up for them as well as the inputs allow, by `C' = C + λ D` with
    `C = E[xᵀx]` and D its diagonal. The best set of a size is too hard to find; this one is greedy.
    With P the inverse of C' over the channels that are left, and W as these have made up so far,
    channel j adds

        w_j R w_jᵀ / P_jj,    and then    W ← W − P_j w_j / P_jj,    P ← P − P_j P_jᵀ / P_jj.

    The cheapest `block` of them go at a time; what they add together is exact, and shared out among
    them as they would add alone. With R the moment of the gradients at y, half of the sum is about
    what the loss rises by.

    Args:
      w: matrix of shape (m, n).
      second: C, symmetric positive semi-definite.
      right: R, the metric of the outputs; the identity by default.
      ridge: λ in (0, 1], as a share of what each channel is worth; four times as much, as often as
        it takes, where C is off by more than half of that from being semi-definite.
      block: static; 1 is one by one.
      unit: static; rows that go together, as those of queries that share a value do: rows i·unit to
        (i + 1)·unit − 1 are channel i, which adds `tr P_UU⁻¹ W_U R W_Uᵀ`.

    Raises:
      ValueError: shapes do not fit, a value is not finite, a metric is visibly not symmetric or has
        negative diagonal entries, the ridge is out of range, or m is no multiple of the unit.

    Cost: 14/3 m³ + 4 m² n + 4 m n² FLOP, and m / block systems of that size.
    Source: Hassibi & Stork, "Second order derivatives for network pruning: Optimal brain surgeon"
    (1993); of channels Kurtić et al., "ZipLM: inference-aware structured pruning of language
    models" (2023), one by one and without R.
    """
    w, second = as_floats(w, second)
    check_matrix(w)
    check_metric(second, len(w), "second")
    if second.ndim != 2:
        raise ValueError(f"second must be ({len(w)}, {len(w)}), got {second.shape}")
    if right is not None:
        w, second, right = as_floats(w, second, right)
        check_metric(right, w.shape[1], "right")
        if right.ndim != 2:
            raise ValueError(f"right must be ({w.shape[1]}, {w.shape[1]}), got {right.shape}")
    share = jnp.asarray(ridge, w.dtype)
    check_share(ridge=share)
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if unit < 1 or len(w) % unit:
        raise ValueError(f"unit must divide the {len(w)} rows of w, got {unit}")
    sizes = min(block, len(w) // unit), unit
    return on_mesh(
        lambda w, second, right, share: _eliminate(w, second, right, share, *sizes),
        w,
        second,
        right,
        share,
        out=PartitionSpec(),
    )


@partial(jax.jit, static_argnums=(4, 5))
def _eliminate(
    w: Array, second: Array, right: Array | None, ridge: Array, block: int, unit: int
) -> Elimination:
    m, scale = len(w), [exponent(w), exponent(second)]
    w, second = to_unit(w, scale[0]), to_unit(second, scale[1])
    strengths = jnp.maximum(jnp.diagonal(second), 0)
    dead = strengths == 0
    # Channels at one scale; dead ones and those that fill up the last block are worth nothing.
    scales = jnp.where(dead, 0, jnp.sqrt(strengths))
    shrunk = jnp.where(dead, 0, lax.rsqrt(jnp.where(dead, 1, strengths)))
    spare = -m % (block * unit)
    correlation = shrunk[:, None] * (second / 2 + second.T / 2) * shrunk[None, :]
    ridge = enough(correlation, ridge, dead)
    system = correlation + jnp.diag(jnp.where(dead, 1, ridge))
    inverse = jnp.pad(solve_positive(system, jnp.eye(m, dtype=w.dtype)), (0, spare))
    inverse = inverse.at[jnp.arange(m, m + spare), jnp.arange(m, m + spare)].set(1)
    rows = jnp.pad(scales[:, None] * w, ((0, spare), (0, 0)))
    size = (m + spare) // unit
    real = jnp.arange(size) < m // unit

    def weighed(x: Array) -> Array:
        return x if right is None else matmul(x, right)

    def step(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        # Of W as it is by now also W R, which would take long to compute anew at each step.
        rows, through, inverse, gone, order, errors = state
        alone = jnp.maximum(_alone(rows, through, inverse, unit), 0)
        cost = jnp.where(gone, jnp.inf, jnp.where(real, alone, jnp.finfo(w.dtype).max))
        units = lax.top_k(-cost, block)[1]
        chosen = (units[:, None] * unit + jnp.arange(unit)[None]).reshape(-1)
        # Those that go: what makes up for them is P_B P_BB⁻¹, and P_BB⁻¹ their conditional moment.
        within = inverse[chosen][:, chosen]
        solved = solve_positive(within, jnp.concatenate([rows[chosen], inverse[chosen]], axis=1))
        lost, moved = solved[:, : rows.shape[1]], solved[:, rows.shape[1] :]
        lost_through = weighed(lost)
        together = jnp.maximum(jnp.vdot(rows[chosen], lost_through), 0)
        each = jnp.where(real[units], alone[units], 0)
        total = jnp.sum(each)
        each = each * jnp.where(total > 0, together / jnp.where(total > 0, total, 1), 1)
        column = inverse[:, chosen]
        start = i * block
        return (
            (rows - matmul(column, lost)).at[chosen].set(0),
            (through - matmul(column, lost_through)).at[chosen].set(0),
            # What has gone keeps a one on its diagonal, and nothing else.
            (inverse - matmul(column, moved))
            .at[chosen].set(0)
            .at[:, chosen].set(0)
            .at[chosen, chosen].set(1),
            gone.at[units].set(True),
            lax.dynamic_update_slice(order, units.astype(order.dtype), (start,)),
            lax.dynamic_update_slice(errors, each, (start,)),
        )  # fmt: skip

    state = (
        rows,
        weighed(rows),
        inverse,
        jnp.zeros(size, bool),
        jnp.zeros(size, jnp.int32),
        jnp.zeros(size, w.dtype),
    )
    *_, order, errors = lax.fori_loop(0, size // block, step, state)
    # The unit of w squared, and that of the moment.
    back = jnp.exp2((2 * scale[0] + scale[1]).astype(w.dtype))
    return Elimination(order[: m // unit], errors[: m // unit] * back)


def _alone(rows: Array, through: Array, inverse: Array, unit: int) -> Array:
    """`tr P_UU⁻¹ W_U R W_Uᵀ` of every unit U, `through` being W R."""
    own = (-1, unit, rows.shape[1])
    lost = jnp.einsum("uan,ubn->uab", through.reshape(own), rows.reshape(own))
    count = len(rows) // unit
    at = jnp.arange(count)
    within = inverse.reshape(count, unit, count, unit)[at, :, at, :]
    # Gauss and Jordan, which a few rows of a positive definite matrix need no pivots for.
    for i in range(unit):
        pivot = within[:, i, i]
        row, mine = within[:, i] / pivot[:, None], lost[:, i] / pivot[:, None]
        others = within[:, :, i].at[:, i].set(0)
        within = (within - others[:, :, None] * row[:, None, :]).at[:, i].set(row)
        lost = (lost - others[:, :, None] * mine[:, None, :]).at[:, i].set(mine)
    return jnp.trace(lost, axis1=1, axis2=2)
