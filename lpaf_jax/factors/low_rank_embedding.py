"""A table of embeddings as a narrow one and a matrix: `T ≈ C B`, E (V + H) numbers for V H."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.factors.base import Record, StoredAs, register_kind
from lpaf_jax.factors.layer import rows_of
from lpaf_jax.factors.low_rank import RankedKind, rank_in


class LowRankEmbedding(nnx.Module):
    """Rows of `C B`, C (V, E) and B (E, H), by index: `2 E H` FLOP a token.

    Source: Lan et al., "ALBERT" (2020), which learns both from the start.
    """

    def __init__(self, codes: Array, basis: Array):
        self.codes = nnx.Param(codes)
        self.basis = nnx.Param(basis)

    def __call__(self, index: Array) -> Array:
        return rows_of(self.codes[...], index) @ self.basis[...]

    def scores(self, x: Array) -> Array:
        """`(x Bᵀ) Cᵀ`: (..., H) to (..., V), for a head that is tied to the table."""
        return (x @ self.basis[...].T) @ self.codes[...].T


class LowRankEmbeddingKind(RankedKind):
    """C lies in the file as `codes.weight`, (V, E), and B as `basis.weight`, (H, E).

    These are an `Embedding` and a `Linear` in PyTorch.
    """

    name = "low_rank_embedding"
    mark = "codes"
    replaces = "weight"
    torch_file = Path(__file__).with_name("low_rank_embedding_torch.py")

    def layer(
        self, factors: Mapping[str, Array], bias: Array | None, record: Record
    ) -> LowRankEmbedding:
        return LowRankEmbedding(factors["codes"], factors["basis"])

    def record(self, layer: Any) -> Record:
        return self.of_rank(layer.codes.shape[1])

    def shapes(self, record: Record, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        (rows, width), rank = shape, rank_in(record)
        return {"codes": (rows, rank), "basis": (rank, width)}

    def stored(self, leaf: str) -> StoredAs | None:
        found = {"codes": StoredAs("codes.weight", False), "basis": StoredAs("basis.weight", True)}
        return found.get(leaf)

    def dense(self, factors: Mapping[str, Any]) -> Any:
        return factors["codes"] @ factors["basis"]

    def rows_for(
        self, factors: Mapping[str, np.ndarray], record: Record, vectors: np.ndarray
    ) -> dict[str, np.ndarray]:
        basis = factors["basis"].astype(np.float64)
        return {"codes": np.linalg.lstsq(basis.T, vectors.T.astype(np.float64), rcond=None)[0].T}

    def flop(self, record: Record, shape: tuple[int, int]) -> int:
        return 2 * rank_in(record) * shape[1]


LOW_RANK_EMBEDDING = LowRankEmbeddingKind()
register_kind(LOW_RANK_EMBEDDING)
