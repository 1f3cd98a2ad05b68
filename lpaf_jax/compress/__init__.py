"""Model to smaller model: factorize every matrix, swap the layers."""

from lpaf_jax.compress.factorize import SOLVERS, factorize
from lpaf_jax.compress.swap import low_rank_factors, to_low_rank, to_mixed

__all__ = ["SOLVERS", "factorize", "low_rank_factors", "to_low_rank", "to_mixed"]
