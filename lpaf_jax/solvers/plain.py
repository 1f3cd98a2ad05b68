"""Truncated SVD, in which every entry counts the same."""

from lpaf_jax.linalg import svd
from lpaf_jax.solvers.base import Solution, Solver, register_solver

register_solver(
    Solver("plain", "truncated SVD", frozenset(), lambda w, _, rank, ridge: Solution(svd(w, rank)))
)
