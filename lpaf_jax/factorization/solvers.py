"""From a matrix and what weighs its error to factors: one entry for each way to solve it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jax import Array

from lpaf_jax.core.errors import SettingError
from lpaf_jax.core.registry import Registry
from lpaf_jax.importance import IMPORTANCES, Importance, Weighting
from lpaf_jax.importance.base import Part
from lpaf_jax.linalg import LowRank, metric_svd, svd, weighted_als, weighted_svd


class Solution(NamedTuple):
    """What becomes of a matrix.

    Attributes:
        factors: A and B, balanced (AᵀA = BBᵀ): an adaptive optimiser then moves both alike.
        bias: what is added to the bias of the layer, (n,); None where nothing is.
    """

    factors: LowRank
    bias: Array | None = None


@dataclass(frozen=True)
class Solver:
    """A way to solve the weighted factorization of one matrix.

    Attributes:
        name: by which it is registered.
        summary: what it does, on one line.
        uses: the parts of a `Weighting` that it looks at.
        solve: `(W, weighting, rank, ridge) -> Solution`, jittable.
        ridge: whether it has a term `λ (‖A‖² + ‖B‖²)`.
    """

    name: str
    summary: str
    uses: frozenset[Part]
    solve: Callable[[Array, Weighting, int, float], Solution]
    ridge: bool = False


SOLVERS: Registry[Solver] = Registry("solver")


def register_solver(solver: Solver) -> Solver:
    """Let recipes use a solver by its name."""
    return SOLVERS.add(solver.name, solver)


def check_pair(importance: Importance, solver: Solver, ridge: float = 0.0) -> None:
    """Refuse an importance and a solver that have nothing to say to each other.

    Raises:
        SettingError: the solver looks at something else than the importance gives, or has no
            ridge and is given one.
    """
    if ridge and not solver.ridge:
        with_ridge = [name for name, each in SOLVERS.items() if each.ridge]
        raise SettingError(
            ("ridge",),
            f"is {ridge}, but solver {solver.name} has a closed form without one: leave it out, or "
            f"take --solver {' or '.join(with_ridge)}",
        )
    unused = importance.gives - solver.uses
    missing = solver.uses - importance.gives
    # A metric may be of one side alone, and plain SVD looks at nothing.
    if unused or (missing and not importance.gives):
        fitting = [name for name, each in SOLVERS.items() if _fits(importance, each)]
        others = [name for name, each in IMPORTANCES.items() if _fits(each, solver)]
        raise SettingError(
            ("importance", "solver"),
            f"do not go together: {importance.name!r} needs --solver {' or '.join(fitting)}, and "
            f"{solver.name!r} needs --importance {' or '.join(others)}",
        )


def _fits(importance: Importance, solver: Solver) -> bool:
    if not importance.gives:
        return not solver.uses
    return importance.gives <= solver.uses


def _by_sharing(sharing: str) -> Callable[[Array, Weighting, int, float], Solution]:
    def solve(w: Array, weighting: Weighting, rank: int, ridge: float) -> Solution:
        assert weighting.entries is not None
        return Solution(weighted_svd(w, weighting.entries, rank, sharing=sharing))  # type: ignore[arg-type]

    return solve


def _elementwise(w: Array, weighting: Weighting, rank: int, ridge: float) -> Solution:
    assert weighting.entries is not None
    return Solution(weighted_als(w, weighting.entries, rank, ridge=ridge)[0])


def _metric(w: Array, weighting: Weighting, rank: int, ridge: float) -> Solution:
    return Solution(metric_svd(w, rank, left=weighting.left, right=weighting.right))


_ENTRIES: frozenset[Part] = frozenset({"entries"})
register_solver(
    Solver("plain", "truncated SVD", frozenset(), lambda w, _, rank, ridge: Solution(svd(w, rank)))
)
register_solver(Solver("row", "closed form, one importance a row", _ENTRIES, _by_sharing("row")))
register_solver(
    Solver("column", "closed form, one importance a column", _ENTRIES, _by_sharing("column"))
)
register_solver(
    Solver(
        "separable",
        "closed form, importance of a row times that of a column",
        _ENTRIES,
        _by_sharing("separable"),
    )
)
register_solver(
    Solver(
        "elementwise",
        "every entry with its own importance, by alternating least squares",
        _ENTRIES,
        _elementwise,
        ridge=True,
    )
)
register_solver(
    Solver(
        "metric",
        "closed form in the metric of inputs and outputs",
        frozenset({"left", "right"}),
        _metric,
    )
)
