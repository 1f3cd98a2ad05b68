"""The nearest sum of Kronecker products, in which every entry counts the same."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from lpaf_jax.importance import Weighting
from lpaf_jax.linalg import Kronecker, kronecker_shapes, nearest_kronecker
from lpaf_jax.solvers.base import Form, Solution, Solver, register_solver

Shapes = tuple[tuple[int, int], tuple[int, int]]


def _pairs(m: int, n: int) -> Shapes:
    """The smaller side halved, (m/2, n) and (2, 1) where both are equal; the other if it is odd.

    Where both are odd a term has more numbers than the matrix, which then stays dense.
    """
    rows, columns = ((m // 2, n), (2, 1)), ((m, n // 2), (1, 2))
    if m % 2 and n % 2:
        return (m, n), (1, 1)
    return rows if m % 2 == 0 and (m <= n or n % 2) else columns


def _every_other(w: Array, shapes: Shapes, rank: int) -> Kronecker:
    """Term t is the t-th entry of each block: for pairs, every second row or column of W.

    Not the nearest: what it leaves out is 0. krony-PT found it the better start of a training.
    """
    (m1, n1), (m2, n2) = shapes
    blocks = w.reshape(m1, m2, n1, n2).transpose(1, 3, 0, 2).reshape(m2 * n2, m1, n1)
    return Kronecker(blocks[:rank], jnp.eye(m2 * n2, dtype=w.dtype).reshape(-1, m2, n2)[:rank])


def _solver(
    name: str,
    summary: str,
    shapes: Callable[[int, int], Shapes],
    best: Callable[[Array, Shapes, int], Kronecker] = nearest_kronecker,
) -> Solver:
    def solve(w: Array, _: Weighting, rank: int, ridge: float) -> Solution:
        m, n = w.shape
        return Solution(best(w, shapes(m, n), rank))

    def ranked(shape: tuple[int, int]) -> tuple[int, int]:
        """With a block a row, a term is an outer product: (m1 n1, m2 n2)."""
        outer, inner = shapes(*shape)
        return math.prod(outer), math.prod(inner)

    form = Form("sums of r Kronecker products", "r", "Kronecker factorization", "kronecker")
    return Solver(name, summary, frozenset(), solve, ranked=ranked, form=form)


register_solver(
    _solver(
        "kronecker",
        "nearest sum of Kronecker products, in the shapes with the fewest parameters",
        kronecker_shapes,
    )
)
register_solver(
    _solver(
        "kronecker-pairs",
        "nearest Kronecker product of a half-size matrix and a pair of numbers",
        _pairs,
    )
)
register_solver(
    _solver(
        "kronecker-halves",
        "every second row or column of a matrix, and zeros between: a start for training",
        _pairs,
        _every_other,
    )
)
