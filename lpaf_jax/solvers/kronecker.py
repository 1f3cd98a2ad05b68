"""The nearest sum of Kronecker products, in which every entry counts the same."""

import math

from jax import Array

from lpaf_jax.importance import Weighting
from lpaf_jax.linalg import kronecker_shapes, nearest_kronecker
from lpaf_jax.solvers.base import Form, Solution, Solver, register_solver


def _solve(w: Array, _: Weighting, rank: int, ridge: float) -> Solution:
    m, n = w.shape
    return Solution(nearest_kronecker(w, kronecker_shapes(m, n), rank))


def _ranked(shape: tuple[int, int]) -> tuple[int, int]:
    """With a block a row, a term is an outer product: (m1 n1, m2 n2)."""
    outer, inner = kronecker_shapes(*shape)
    return math.prod(outer), math.prod(inner)


register_solver(
    Solver(
        "kronecker",
        "nearest sum of Kronecker products, of the shapes with the fewest numbers",
        frozenset(),
        _solve,
        ranked=_ranked,
        form=Form("sums of r Kronecker products", "r", "Kronecker factorization"),
    )
)
