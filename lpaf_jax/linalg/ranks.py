"""How large a rank a parameter budget allows: one for all matrices, or the best for each."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float


def rank_for_ratio(shapes: Sequence[tuple[int, int]], ratio: float) -> int:
    """The one rank for all matrices that keeps a share `ratio` of their parameters.

    `k = ⌊ratio · Σ m n / Σ (m + n)⌋` over the shapes (m, n), at least 1 and at most the smallest
    side of any of them. A ratio below Σ (m + n) / Σ m n cannot be met; k is then 1.

    Raises:
      ValueError: no shapes, a side below 1, or a ratio outside (0, 1].
    """
    _check_shapes(shapes)
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
    dense = sum(m * n for m, n in shapes)
    per_rank = sum(m + n for m, n in shapes)
    # The slack keeps a product that is whole in exact arithmetic from rounding to just below it.
    rank = math.floor(ratio * dense / per_rank * (1 + 1e-12))
    return max(1, min(rank, *(min(shape) for shape in shapes)))


def allocate_ranks(
    spectra: Sequence[Float[Array, " r"] | Float[np.ndarray, " r"]],
    shapes: Sequence[tuple[int, int]],
    budget: int,
    multiple_of: int = 1,
) -> list[int]:
    """The rank of each matrix that keeps most energy of all of them in `budget` parameters.

    `max Σ_i Σ_{j≤k_i} s_ij²` subject to `Σ_i k_i (m_i + n_i) ≤ budget`, with each k_i a multiple of
    `multiple_of` or all of `r_i = min(m_i, n_i)`. What is left out, `Σ_i Σ_{j>k_i} s_ij²`, is the
    sum of the squared errors of the closed forms, if the spectra are of the (weighted) matrices
    that those cut; weights must then be in one unit for all matrices, not normalised for each.

    Every matrix gets one step, `min(multiple_of, r_i)`: a rank of 0 is no layer. Further steps go
    where they gain most per parameter, until none is affordable that gains anything. As the gains
    of one matrix fall, this is the optimum wherever the budget is spent when the first step is met
    that does not fit (where all steps cost the same, always: the largest singular values overall).
    Elsewhere it misses the optimum by less than the gain of that one step, of the hundreds that a
    model has; an exact search would cost far more than that is worth. More budget never keeps less.

    A rank of `k >= m n / (m + n)` has no fewer parameters than the matrix. Ranks are capped at r_i
    only: see `allocate_ranks_or_dense`.

    Args:
      spectra: singular values of each matrix, all min(m, n) of them, in falling order.
      shapes: (m, n) of each matrix.
      budget: how many numbers the factors may have, over all matrices.
      multiple_of: step of the ranks, for hardware that wants multiples of 8 or 64.

    Returns:
      The ranks, in the order of the shapes. Equal gains per parameter go to the matrix with fewer
      steps, then to the first.

    Raises:
      ValueError: no shapes, spectra that do not fit them or are negative, not falling or not
        finite, `multiple_of` below 1, or a budget below one step for every matrix.

    Cost: a sort of all singular values.
    Source: Fox, "Discrete optimization via marginal analysis" (1966) for the greedy rule; Dantzig,
    "Discrete-variable extremum problems" (1957) for its distance from the optimum.
    """
    _check_shapes(shapes)
    _check_step(multiple_of)
    values = _checked_spectra(spectra, shapes)
    stops = [[*range(multiple_of, min(shape), multiple_of), min(shape)] for shape in shapes]
    least = sum(stop[0] * sum(shape) for stop, shape in zip(stops, shapes, strict=True))
    if not budget >= least:
        raise ValueError(_too_little(budget, len(shapes), least))

    # Free of units, so that no square overflows; by a power of two, so that equals stay equal.
    _, unit = math.frexp(max(s[0] for s in values))
    worth, cost = [], []
    for s, stop, shape in zip(values, stops, shapes, strict=True):
        gains = np.add.reduceat(np.square(np.ldexp(s, -unit)), [0, *stop[:-1]])
        costs = np.diff(stop, prepend=0) * sum(shape)
        # Rounding may have the gain of a flat spectrum rise, but its steps come in their order.
        worth.append(np.minimum.accumulate(gains / costs)[1:])
        cost.append(costs[1:])
    step = np.concatenate([np.arange(1, len(stop)) for stop in stops])
    owner = np.repeat(np.arange(len(stops)), [len(stop) - 1 for stop in stops])
    return _spend(budget - least, np.concatenate(worth), np.concatenate(cost), step, owner, stops)


def allocate_ranks_or_dense(
    spectra: Sequence[Float[Array, " r"] | Float[np.ndarray, " r"]],
    shapes: Sequence[tuple[int, int]],
    budget: int,
    multiple_of: int = 1,
) -> list[int | None]:
    """The rank of each matrix, or None to leave it dense, that loses least in `budget` parameters.

    `min Σ_i e_i(c_i)` subject to `Σ_i cost(c_i) ≤ budget`, where a choice c_i is a rank k, a
    multiple of `multiple_of`, of cost `k (m_i + n_i)` and loss `e_i(k) = Σ_{j>k} s_ij²`; or dense,
    of cost `m_i n_i` and loss 0. At the rank `m n / (m + n)` the loss drops to 0 at no cost, so the
    losses of a matrix are not convex in its cost, and a greedy rule that goes up rank by rank never
    sees what a dense one would save.

    Solved by a Lagrange multiplier: at a price λ of a parameter each matrix takes what is cheapest,
    `argmin_c e_i(c) + λ cost(c)`, a vertex of the lower convex hull of its choices; λ falls until
    the budget is spent. What is left over goes to whatever single change then saves most. The first
    part is the optimum for what it spends; altogether the optimum is missed by less than the gain
    of the one segment of a hull that did not fit.

    Args:
      spectra: singular values of each matrix, all min(m, n) of them, in falling order and, over all
        matrices, in one unit.
      shapes: (m, n) of each matrix.
      budget: how many numbers may be kept, over all matrices.
      multiple_of: step of the ranks.

    Returns:
      The ranks, in the order of the shapes. A rank is one that costs less than the dense matrix; a
      matrix that has none stays dense.

    Raises:
      ValueError: as `allocate_ranks`; here the least that can be paid for is one step, or the whole
      of a matrix too small for one.

    Cost: a hull of each spectrum, and a sort of their segments.
    Source: Everett, "Generalized Lagrange multiplier method for solving problems of optimum
    allocation of resources" (1963); Shoham & Gersho, "Efficient bit allocation for an arbitrary set
    of quantizers" (1988), for the hulls.
    """
    _check_shapes(shapes)
    _check_step(multiple_of)
    values = _checked_spectra(spectra, shapes)
    # Free of units, so that no square overflows.
    _, unit = math.frexp(max(s[0] for s in values))
    all_choices = [
        rank_choices(np.ldexp(s, -unit), shape, multiple_of)
        for s, shape in zip(values, shapes, strict=True)
    ]
    return allocate_choices(all_choices, budget)


class Choices(NamedTuple):
    """What may become of a part of a model.

    Attributes:
        sizes: how much of it is kept: a rank, or a number of channels; None is all of it.
        costs: how many numbers each takes, rising. losses: what each loses.
    """

    sizes: list[int | None]
    costs: Float[np.ndarray, " c"]
    losses: Float[np.ndarray, " c"]


def rank_choices(
    s: Float[np.ndarray, " r"], shape: tuple[int, int], multiple_of: int = 1, least: float = 0.0
) -> Choices:
    """The ranks of a matrix (m, n) that cost less than it, and the whole of it.

    Args:
      s: its singular values, all of them, in falling order.
      multiple_of: step of the ranks.
      least: share of its numbers that is kept: there is no choice below it.

    Raises:
      ValueError: the spectrum does not fit, is not finite, negative or not falling,
        `multiple_of` is below 1, or the share is not in [0, 1).
    """
    _check_step(multiple_of, least)
    (s,) = _checked_spectra([s], [shape])
    m, n = shape
    below = (m * n - 1) // (m + n)  # the largest rank that costs less than the matrix
    chosen = list(range(multiple_of, below + 1, multiple_of)) or [below] * (below > 0)
    chosen = [k for k in chosen if k * (m + n) >= least * m * n]
    return _choices(s, chosen, m + n, m * n)


def channel_choices(
    s: Float[np.ndarray, " m"], price: int, multiple_of: int = 1, least: float = 0.0
) -> Choices:
    """The numbers of channels that may be kept, and all of them.

    Args:
      s: what each is worth: the root of what is lost as it goes, all after it being gone already
        (see `eliminate_channels`, whose order is the other way round).
      price: how many numbers one takes, in all matrices that it is in.
      multiple_of: step of the numbers.
      least: share of the channels that is kept: there is no choice below it.

    Raises:
      ValueError: a worth is negative or not finite, `multiple_of` is below 1, or the share is not
        in [0, 1).
    """
    _check_step(multiple_of, least)
    if not (np.isfinite(s).all() and (s >= 0).all()):
        raise ValueError("the values of channels contain negative, NaN or infinite entries")
    chosen = [k for k in range(multiple_of, len(s), multiple_of) if k >= least * len(s)]
    return _choices(s, chosen, price, price * len(s))


def _choices(s: np.ndarray, sizes: list[int], price: int, whole: int) -> Choices:
    """Some sizes at a price each, which lose what of `s` lies beyond them, and the whole."""
    tail = np.append(np.cumsum(np.square(s)[::-1])[::-1], 0.0)
    costs = np.array([*(k * price for k in sizes), whole], np.float64)
    return Choices([*sizes, None], costs, np.array([*tail[sizes], 0.0]))


def allocate_choices(choices: Sequence[Choices], budget: float) -> list[int | None]:
    """The size of each part for the least sum of losses within a budget.

    See `allocate_ranks_or_dense`, which says how this is solved, and how nearly.

    Raises:
      ValueError: the budget does not pay for the cheapest choice of each.
    """
    costs, losses = [each.costs for each in choices], [each.losses for each in choices]
    least = sum(cost[0] for cost in costs)
    if not budget >= least:
        raise ValueError(
            f"a budget of {budget:,.0f} parameters (not a ratio) is too small for one step of "
            f"each of {len(choices)} parts, which takes {least:,.0f}"
        )
    taken = _by_price(costs, losses, budget - least)
    return [each.sizes[i] for each, i in zip(choices, taken, strict=True)]


def _by_price(costs: list[np.ndarray], losses: list[np.ndarray], left: float) -> list[int]:
    """Which choice each matrix ends at, from its first on, with `left` to spend."""
    hulls = [_hull(cost, loss) for cost, loss in zip(costs, losses, strict=True)]
    segments = [
        ((losses[i][a] - losses[i][b]) / (costs[i][b] - costs[i][a]), i, b)
        for i, hull in enumerate(hulls)
        for a, b in pairwise(hull)
    ]
    taken = [hull[0] for hull in hulls]
    for gain, i, b in sorted(segments, key=lambda s: (-s[0], s[1], s[2])):
        price = costs[i][b] - costs[i][taken[i]]
        if gain <= 0 or price > left:
            break
        taken[i], left = b, left - price
    while True:  # what is left over
        best, step = 0.0, None
        for i, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
            fits = np.flatnonzero(cost - cost[taken[i]] <= left)
            j = int(fits[np.argmin(loss[fits])])
            if (saved := float(loss[taken[i]] - loss[j])) > best:
                best, step = saved, (i, j)
        if step is None:
            return taken
        i, j = step
        left -= costs[i][j] - costs[i][taken[i]]
        taken[i] = j


def _hull(cost: np.ndarray, loss: np.ndarray) -> list[int]:
    """The lower convex hull of the points of rising cost and falling loss, from the first on."""
    hull: list[int] = []
    for j in range(len(cost)):
        while len(hull) > 1:
            a, b = hull[-2:]
            turn = (cost[b] - cost[a]) * (loss[j] - loss[a])
            if turn > (cost[j] - cost[a]) * (loss[b] - loss[a]):
                break
            hull.pop()
        hull.append(j)
    return hull


def _spend(
    left: int,
    worth: np.ndarray,
    cost: np.ndarray,
    step: np.ndarray,
    owner: np.ndarray,
    stops: list[list[int]],
) -> list[int]:
    """The rank that each matrix stops at: the steps of most worth, then whatever still fits."""
    order = np.lexsort((owner, step, -worth))
    order = order[worth[order] > 0]
    fit = int(np.searchsorted(np.cumsum(cost[order]), left, side="right"))
    taken = np.bincount(owner[order[:fit]], minlength=len(stops)).tolist()
    left -= int(cost[order[:fit]].sum())
    cheapest = cost.min(initial=left + 1)
    for j in order[fit:]:
        if left < cheapest:
            break
        if cost[j] <= left and taken[owner[j]] == step[j] - 1:
            taken[owner[j]] = int(step[j])
            left -= int(cost[j])
    return [stop[steps] for stop, steps in zip(stops, taken, strict=True)]


def _too_little(budget: int, matrices: int, least: int) -> str:
    return (
        f"a budget of {budget} parameters (not a ratio) is too small for one step of rank for "
        f"each of the {matrices} matrices, which takes {least}"
    )


def _check_step(multiple_of: int, least: float = 0.0) -> None:
    if not 0 <= least < 1:
        raise ValueError(f"least must lie in [0, 1), got {least}")
    if not isinstance(multiple_of, int | np.integer) or multiple_of < 1:
        raise ValueError(f"multiple_of must be a positive integer, got {multiple_of!r}")


def _check_shapes(shapes: Sequence[tuple[int, int]]) -> None:
    if not shapes:
        raise ValueError("no shapes given: pass at least one matrix (m, n)")
    if any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise ValueError(f"each shape must be (m, n) with positive sides, got {list(shapes)}")


def _checked_spectra(
    spectra: Sequence[Array | np.ndarray], shapes: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    if len(spectra) != len(shapes):
        raise ValueError(
            f"{len(spectra)} spectra for {len(shapes)} shapes: pass one spectrum per shape"
        )
    values = [np.asarray(s, np.float64) for s in spectra]
    for i, (s, shape) in enumerate(zip(values, shapes, strict=True)):
        if s.shape != (min(shape),):
            raise ValueError(
                f"spectrum {i} has shape {s.shape}, but a matrix {tuple(shape)} has {min(shape)} "
                "singular values"
            )
        if not np.isfinite(s).all():
            raise ValueError(f"spectrum {i} has NaN or infinite entries")
        if (s < 0).any():
            raise ValueError(f"spectrum {i} has negative entries: singular values are at least 0")
        if (np.diff(s) > 0).any():
            raise ValueError(f"spectrum {i} is not in descending order: sort it, largest first")
    return values
