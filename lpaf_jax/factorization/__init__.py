"""Model to smaller model: factorize every matrix, swap the layers."""

from lpaf_jax.factorization.factorize import factorize
from lpaf_jax.factorization.swap import low_rank_factors, to_low_rank, to_mixed

__all__ = ["factorize", "low_rank_factors", "to_low_rank", "to_mixed"]
