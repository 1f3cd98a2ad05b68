"""Closed forms for an importance that is shared along rows, along columns, or a product of both."""

from collections.abc import Callable
from typing import Literal

from jax import Array

from lpaf_jax.importance import Weighting
from lpaf_jax.linalg import weighted_svd
from lpaf_jax.solvers.base import ENTRIES, Solution, Solver, register_solver


def _by_sharing(
    sharing: Literal["row", "column", "separable"],
) -> Callable[[Array, Weighting, int, float], Solution]:
    def solve(w: Array, weighting: Weighting, rank: int, ridge: float) -> Solution:
        assert weighting.entries is not None
        return Solution(weighted_svd(w, weighting.entries, rank, sharing=sharing))

    return solve


register_solver(
    Solver("row", "closed form, one importance per row", ENTRIES, _by_sharing("row"), ENTRIES)
)
register_solver(
    Solver(
        "column", "closed form, one importance per column", ENTRIES, _by_sharing("column"), ENTRIES
    )
)
register_solver(
    Solver(
        "separable",
        "closed form, importance of the row times importance of the column",
        ENTRIES,
        _by_sharing("separable"),
        ENTRIES,
    )
)
