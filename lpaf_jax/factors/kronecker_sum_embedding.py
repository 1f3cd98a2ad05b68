"""A table of embeddings as a sum of Kronecker products: `T ≈ Σ_t A_t ⊗ B_t`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors.base import Record, StoredAs, register_kind
from lpaf_jax.factors.layer import rows_of
from lpaf_jax.factors.low_rank import RankedKind, rank_in

# Rows that a tied head rebuilds at a time.
_ROWS = 4096
# Numbers that tokens gather at a time: each gathers r (h1 + h2), a thousand times its row.
_GATHERED = 2**22


class KroneckerSumEmbedding(nnx.Module):
    """Row v of V is `Σ_t A_t[v ÷ v2] ⊗ B_t[v mod v2]`, A (v1, r, h1), B (v2, r, h2), H = h1 h2.

    As v1 v2 ≥ V, the last rows of the grid may belong to no token. 2 r H FLOP a token.

    Source: Panahi et al., "Shapeshifter" (2021).
    """

    def __init__(self, coarse: Array, fine: Array, rows: int):
        self.coarse = nnx.Param(coarse)
        self.fine = nnx.Param(fine)
        self.rows = rows

    def __call__(self, index: Array) -> Array:
        coarse, fine = self.coarse[...], self.fine[...]

        def row(v: Array) -> Array:
            a, b = rows_of(coarse, v // len(fine)), rows_of(fine, v % len(fine))
            return jnp.einsum("...ti,...tj->...ij", a, b)

        flat = index.reshape(-1)
        (_, rank, h1), (_, _, h2) = coarse.shape, fine.shape
        size = max(1, _GATHERED // (rank * (h1 + h2)))
        # In a program for any number of tokens that is no int.
        if isinstance(flat.shape[0], int) and flat.shape[0] > size:
            found = jax.lax.map(jax.checkpoint(row), flat, batch_size=size)
        else:
            found = row(flat)
        return found.reshape(*index.shape, -1)

    def scores(self, x: Array) -> Array:
        """`x Tᵀ`: (..., H) to (..., V).

        The rows of T are rebuilt, some thousand at a time; or, token by token, the factors are
        applied one after the other: whichever takes fewer multiplications.
        """
        coarse, fine = self.coarse[...], self.fine[...]
        (v1, rank, h1), (v2, _, h2) = coarse.shape, fine.shape
        tokens = x.reshape(-1, x.shape[-1])
        count, built = tokens.shape[0], v1 * v2 * rank * h1 * h2
        in_turn = rank * (v1 * h1 * h2 + v1 * v2 * h2)
        if isinstance(count, int) and count * (in_turn - v1 * v2 * h1 * h2) < built:

            def of_token(token: Array) -> Array:
                half = jnp.einsum("ij,uti->utj", token.reshape(h1, h2), coarse)
                return jnp.einsum("utj,vtj->uv", half, fine)

            found = jax.lax.map(of_token, tokens)
        else:

            def of_group(a: Array) -> Array:
                return tokens @ jnp.einsum("ti,vtj->vij", a, fine).reshape(v2, -1).T

            # Rebuilt for the gradient, too: kept, they would be the table that was to be saved.
            groups = max(1, _ROWS // v2)
            found = jax.lax.map(jax.checkpoint(of_group), coarse, batch_size=groups)
            found = jnp.moveaxis(found, 0, 1)
        found = found.reshape(count, -1)[:, : self.rows]
        return found.reshape(*x.shape[:-1], -1)


class KroneckerSumEmbeddingKind(RankedKind):
    """A lies in the file as `coarse`, (v1, r, h1), and B as `fine`, (v2, r, h2), as they are."""

    name = "kronecker_sum_embedding"
    mark = "coarse"
    replaces = "weight"
    torch_file = Path(__file__).with_name("kronecker_sum_embedding_torch.py")

    def layer(
        self, factors: Mapping[str, Array], bias: Array | None, record: Record
    ) -> KroneckerSumEmbedding:
        return KroneckerSumEmbedding(factors["coarse"], factors["fine"], record["rows"])

    def record(self, layer: Any) -> Record:
        (_, rank, _), fine = layer.coarse.shape, layer.fine.shape
        return self.of_rank(rank) | {"rows": layer.rows, "fine": [fine[0], fine[2]]}

    def shapes(self, record: Record, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        (rows, hidden), rank, fine = shape, rank_in(record), record.get("fine")
        if type(record.get("rows")) is not int or record["rows"] != rows:
            raise ValueError(f"has {record.get('rows')!r} rows, where the table has {rows}")
        if not isinstance(fine, list) or [type(x) for x in fine] != [int, int] or min(fine) < 1:
            raise ValueError(f"has fine {fine!r}, which must be two sides")
        if hidden % fine[1]:
            raise ValueError(f"has rows of {fine[1]}, which does not divide {hidden}")
        return {
            "coarse": (-(-rows // fine[0]), rank, hidden // fine[1]),
            "fine": (fine[0], rank, fine[1]),
        }

    def stored(self, leaf: str) -> StoredAs | None:
        return StoredAs(leaf, False) if leaf in ("coarse", "fine") else None

    def dense(self, factors: Mapping[str, Any]) -> Any:
        """Of all v1 v2 rows, the last of which may be no token's."""
        coarse, fine = factors["coarse"], factors["fine"]
        (v1, rank, h1), (v2, _, h2) = coarse.shape, fine.shape
        a, b = (x.swapaxes(1, 2).reshape(-1, rank) for x in (coarse, fine))
        whole = (a @ b.T).reshape(v1, h1, v2, h2)
        return whole.transpose(0, 2, 1, 3).reshape(v1 * v2, h1 * h2)

    def rows_for(
        self, factors: Mapping[str, np.ndarray], record: Record, vectors: np.ndarray
    ) -> dict[str, np.ndarray]:
        raise LpafError(
            "rows of a table of Kronecker sums share all their numbers with other rows, so it "
            "cannot get more of them: add the tokens to the dense model first"
        )

    def summary(self, record: Record) -> str:
        """`581 of 212×144 rows`: how many terms, and the grid that the rows are laid out on."""
        places = record["fine"][0]
        groups = -(-record["rows"] // places)
        padding = groups * places - record["rows"]
        beside = f", {padding} of them padding" if padding else ""
        return f"{record['rank']} of {groups}×{places} rows{beside}"

    def flop(self, record: Record, shape: tuple[int, int]) -> int:
        return 2 * rank_in(record) * shape[1]


register_kind(KroneckerSumEmbeddingKind())
