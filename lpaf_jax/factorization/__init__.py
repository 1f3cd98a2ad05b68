"""Model to smaller model: factorize every matrix, swap the layers."""

from lpaf_jax.factorization.embeddings import (
    embedding_rank,
    factorize_embeddings,
    head_moment,
    token_counts,
)
from lpaf_jax.factorization.factorize import factorize
from lpaf_jax.factorization.swap import low_rank_factors, take_embeddings, to_low_rank, to_mixed

__all__ = [
    "embedding_rank",
    "factorize",
    "factorize_embeddings",
    "head_moment",
    "low_rank_factors",
    "take_embeddings",
    "to_low_rank",
    "to_mixed",
    "token_counts",
]
