"""How large a rank a parameter budget allows: one for all matrices, or the best for each."""

import math
from collections.abc import Sequence

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
    only: to leave such a matrix dense, and share out what that saves, is the caller's choice.

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
    if not isinstance(multiple_of, int | np.integer) or multiple_of < 1:
        raise ValueError(f"multiple_of must be a positive integer, got {multiple_of!r}")
    values = _checked_spectra(spectra, shapes)
    stops = [[*range(multiple_of, min(shape), multiple_of), min(shape)] for shape in shapes]
    least = sum(stop[0] * sum(shape) for stop, shape in zip(stops, shapes, strict=True))
    if not budget >= least:
        raise ValueError(
            f"a budget of {budget} cannot pay for one step of rank for each of the {len(shapes)} "
            f"matrices: it counts parameters (it is no ratio), and that takes {least}"
        )

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


def _check_shapes(shapes: Sequence[tuple[int, int]]) -> None:
    if not shapes:
        raise ValueError("no shapes given: a rank needs at least one matrix (m, n)")
    if any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise ValueError(f"each shape must be (m, n) with positive sides, got {list(shapes)}")


def _checked_spectra(
    spectra: Sequence[Array | np.ndarray], shapes: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    if len(spectra) != len(shapes):
        raise ValueError(f"{len(spectra)} spectra do not fit {len(shapes)} shapes: one each")
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
            raise ValueError(f"spectrum {i} does not fall: sort it, largest first")
    return values
