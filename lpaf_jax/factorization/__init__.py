"""Model to smaller model: factorize every matrix, swap the layers."""

from lpaf_jax.factorization.embeddings import (
    FORMS,
    factorize_embeddings,
    head_moment,
    table_record,
    token_counts,
)
from lpaf_jax.factorization.factorize import factorize
from lpaf_jax.factorization.swap import low_rank_factors, take_embeddings, to_factors, to_mixed

__all__ = [
    "FORMS",
    "factorize",
    "factorize_embeddings",
    "head_moment",
    "low_rank_factors",
    "table_record",
    "take_embeddings",
    "to_factors",
    "to_mixed",
    "token_counts",
]
