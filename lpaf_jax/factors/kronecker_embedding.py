"""A table of embeddings as Kronecker products: row v is `Σ_t a_vt ⊗ b_t`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.factors.base import Record, StoredAs, register_kind
from lpaf_jax.factors.layer import rows_of
from lpaf_jax.factors.low_rank import RankedKind, rank_in


class KroneckerEmbedding(nnx.Module):
    """Rows `Σ_t a_vt ⊗ b_t`, a (V, r, H/f) and b (r, f), by index: `2 r H` FLOP a token.

    Source: Edalati et al., "Kronecker decomposition for GPT compression" (2022), of one term.
    """

    def __init__(self, pieces: Array, patterns: Array):
        self.pieces = nnx.Param(pieces)
        self.patterns = nnx.Param(patterns)

    def __call__(self, index: Array) -> Array:
        found = jnp.einsum("...ti,tj->...ij", rows_of(self.pieces[...], index), self.patterns[...])
        return found.reshape(*found.shape[:-2], -1)

    def scores(self, x: Array) -> Array:
        """`x Tᵀ`: (..., H) to (..., V), for a head that is tied to the table."""
        pieces, patterns = self.pieces[...], self.patterns[...]
        x = x.reshape(*x.shape[:-1], -1, patterns.shape[1])
        half = jnp.einsum("...ij,tj->...ti", x, patterns)
        return half.reshape(*half.shape[:-2], -1) @ pieces.reshape(len(pieces), -1).T


class KroneckerEmbeddingKind(RankedKind):
    """a lies in the file as `pieces`, (V, r, H/f), and b as `patterns`, (r, f), as they are."""

    name = "kronecker_embedding"
    mark = "pieces"
    replaces = "weight"
    torch_file = Path(__file__).with_name("kronecker_embedding_torch.py")

    def layer(
        self, factors: Mapping[str, Array], bias: Array | None, record: Record
    ) -> KroneckerEmbedding:
        return KroneckerEmbedding(factors["pieces"], factors["patterns"])

    def record(self, layer: Any) -> Record:
        rank, width = layer.patterns.shape
        return self.of_rank(rank) | {"pattern": width}

    def shapes(self, record: Record, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        (rows, hidden), rank, width = shape, rank_in(record), record.get("pattern")
        if type(width) is not int or width < 1 or hidden % width:
            raise ValueError(f"has patterns of {width!r}, which does not divide {hidden}")
        return {"pieces": (rows, rank, hidden // width), "patterns": (rank, width)}

    def stored(self, leaf: str) -> StoredAs | None:
        return StoredAs(leaf, False) if leaf in ("pieces", "patterns") else None

    def dense(self, factors: Mapping[str, Any]) -> Any:
        pieces, patterns = factors["pieces"], factors["patterns"]
        return (pieces.swapaxes(1, 2) @ patterns).reshape(len(pieces), -1)

    def rows_for(
        self, factors: Mapping[str, np.ndarray], record: Record, vectors: np.ndarray
    ) -> dict[str, np.ndarray]:
        patterns = factors["patterns"].astype(np.float64)
        pieces = vectors.astype(np.float64).reshape(-1, patterns.shape[1])
        found = np.linalg.lstsq(patterns.T, pieces.T, rcond=None)[0]
        return {"pieces": found.reshape(len(patterns), len(vectors), -1).swapaxes(0, 1)}

    def flop(self, record: Record, shape: tuple[int, int]) -> int:
        return 2 * rank_in(record) * shape[1]


register_kind(KroneckerEmbeddingKind())
