"""The closed form in a metric of inputs, of outputs, or of both."""

from jax import Array

from lpaf_jax.importance import Weighting
from lpaf_jax.linalg import LowRank, metric_svd
from lpaf_jax.solvers.base import Solution, Solver, register_solver


def _solve(w: Array, weighting: Weighting, rank: int, ridge: float) -> Solution:
    return Solution(metric_svd(w, rank, left=weighting.left, right=weighting.right))


def _nested(w: Array, weighting: Weighting, rank: int) -> LowRank:
    return metric_svd(w, rank, left=weighting.left, right=weighting.right, balanced=False)


register_solver(
    Solver(
        "metric",
        "closed form in the metric of inputs and outputs",
        frozenset({"left", "right"}),
        _solve,
        nested=_nested,
    )
)
