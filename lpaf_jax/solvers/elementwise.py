"""The exact element-wise objective, by alternating least squares."""

from jax import Array

from lpaf_jax.importance import Weighting
from lpaf_jax.linalg import weighted_als
from lpaf_jax.solvers.base import ENTRIES, Solution, Solver, register_solver


def _solve(w: Array, weighting: Weighting, rank: int, ridge: float) -> Solution:
    assert weighting.entries is not None
    return Solution(weighted_als(w, weighting.entries, rank, ridge=ridge)[0])


register_solver(
    Solver(
        "elementwise",
        "alternating least squares, with one importance per entry",
        ENTRIES,
        _solve,
        ENTRIES,
        ridge=True,
    )
)
