"""The closed form in a metric of what is nearest to the outputs of the dense model."""

from jax import Array

from lpaf_jax.importance import Weighting
from lpaf_jax.linalg import LowRank, metric_svd, regressed
from lpaf_jax.solvers.base import Solution, Solver, register_solver


def _target(w: Array, weighting: Weighting) -> Array:
    if weighting.cross is None:
        return w
    assert weighting.left is not None
    return regressed(w, weighting.left, weighting.cross)


def _solve(w: Array, weighting: Weighting, rank: int, ridge: float) -> Solution:
    target = _target(w, weighting)
    return Solution(metric_svd(target, rank, left=weighting.left))


def _nested(w: Array, weighting: Weighting, rank: int) -> LowRank:
    target = _target(w, weighting)
    return metric_svd(target, rank, left=weighting.left, balanced=False)


register_solver(
    Solver(
        "shifted",
        "closed form for matching the dense model's outputs from changed inputs",
        frozenset({"left", "cross"}),
        _solve,
        needs=frozenset({"left", "cross"}),
        nested=_nested,
    )
)
