"""Model to smaller model: factorize every matrix, swap the layers."""

from lpaf_jax.compress.factorize import SOLVERS, factorize
from lpaf_jax.compress.swap import to_low_rank, to_mixed

__all__ = ["SOLVERS", "factorize", "to_low_rank", "to_mixed"]
