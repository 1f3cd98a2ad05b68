"""Model to smaller model: factorize every matrix, swap the layers."""

from lpaf_jax.factorization.factorize import factorize
from lpaf_jax.factorization.ranks import RANK_RULES, RankRule, register_rank_rule
from lpaf_jax.factorization.solvers import SOLVERS, Solution, Solver, check_pair, register_solver
from lpaf_jax.factorization.swap import low_rank_factors, to_low_rank, to_mixed

__all__ = [
    "RANK_RULES",
    "SOLVERS",
    "RankRule",
    "Solution",
    "Solver",
    "check_pair",
    "factorize",
    "low_rank_factors",
    "register_rank_rule",
    "register_solver",
    "to_low_rank",
    "to_mixed",
]
