"""A table of embeddings as a sum of Kronecker products in PyTorch."""

from typing import Any

from torch import Tensor, cat, einsum, nn, stack, zeros


def kronecker_sum_embedding(layer: nn.Embedding, record: dict[str, Any]) -> nn.Module:
    """A table whose row v is `Σ_t coarse[v ÷ v2, t] ⊗ fine[v mod v2, t]`."""
    return KroneckerSumEmbedding(layer, record["rank"], record["fine"])


class KroneckerSumEmbedding(nn.Module):
    def __init__(self, table: nn.Embedding, rank: int, sides: list[int]):
        super().__init__()
        self.rows, places, width = table.num_embeddings, sides[0], sides[1]
        groups = -(-self.rows // places)
        self.coarse = nn.Parameter(zeros(groups, rank, table.embedding_dim // width))
        self.fine = nn.Parameter(zeros(places, rank, width))

    def forward(self, index: Tensor) -> Tensor:
        places, flat = self.fine.shape[0], index.reshape(-1)
        # Each token gathers r (h1 + h2) numbers, a thousand times its row: not all at once.
        size = max(1, 2**22 // (self.coarse[0].numel() + self.fine[0].numel()))
        # In a program for any number of tokens that is no int.
        count = flat.shape[0]
        parts = flat.split(size) if isinstance(count, int) and count > size else [flat]
        rows = [
            einsum("nti,ntj->nij", self.coarse[some // places], self.fine[some % places])
            for some in parts
        ]
        return cat(rows).reshape(*index.shape, -1)

    def tie(self, model: Any) -> None:
        """Give a head that had the weight of the table its rows."""
        head, tied = model.get_output_embeddings(), model.config.tie_word_embeddings
        if head is not None and tied and model.get_input_embeddings() is self:
            model.set_output_embeddings(KroneckerSumEmbeddingHead(self))
            # No weight has the name of another one any more.
            model._tied_weights_keys, model.all_tied_weights_keys = None, {}


class KroneckerSumEmbeddingHead(nn.Module):
    """Rows are rebuilt some thousand at a time: all of them are what was to be saved.

    Where that is cheaper, the factors are applied one after the other, token by token.
    """

    def __init__(self, table: KroneckerSumEmbedding):
        super().__init__()
        self._table = (table,)  # in a tuple, so that its parameters are not found twice

    def forward(self, x: Tensor) -> Tensor:
        table = self._table[0]
        (v1, rank, h1), (v2, _, h2) = table.coarse.shape, table.fine.shape
        tokens = x.reshape(-1, h1 * h2)
        count, built = tokens.shape[0], v1 * v2 * rank * h1 * h2
        in_turn = rank * (v1 * h1 * h2 + v1 * v2 * h2)
        if isinstance(count, int) and count * (in_turn - v1 * v2 * h1 * h2) < built:
            halves = (einsum("ij,uti->utj", t.reshape(h1, h2), table.coarse) for t in tokens)
            found = [einsum("utj,vtj->uv", half, table.fine).flatten() for half in halves]
            return stack(found)[:, : table.rows].reshape(*x.shape[:-1], -1)
        groups = table.coarse.split(max(1, 4096 // v2))
        rows = (einsum("gti,vtj->gvij", some, table.fine).flatten(2) for some in groups)
        return cat([x @ some.flatten(0, 1).T for some in rows], dim=-1)[..., : table.rows]
