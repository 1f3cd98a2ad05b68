"""The closed form in a metric, with the bias that belongs to it."""

from jax import Array

from lpaf_jax.importance import Weighting
from lpaf_jax.linalg import metric_svd
from lpaf_jax.linalg.arithmetic import matmul
from lpaf_jax.solvers.base import Solution, Solver, register_solver


def _solve(w: Array, weighting: Weighting, rank: int, ridge: float) -> Solution:
    assert weighting.mean is not None
    factors = metric_svd(w, rank, left=weighting.left, right=weighting.right)
    # Of any AB the error has mean E[x](W − AB): the bias takes it up.
    return Solution(factors, matmul(weighting.mean, w - factors.dense()))


register_solver(
    Solver(
        "affine",
        "closed form in the metric of inputs and outputs, with a bias that preserves the mean "
        "output",
        frozenset({"left", "right", "mean"}),
        _solve,
        frozenset({"left", "mean"}),
        moves_bias=True,
    )
)
