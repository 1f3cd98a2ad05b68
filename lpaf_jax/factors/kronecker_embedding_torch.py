"""A table of embeddings as Kronecker products in PyTorch."""

from typing import Any

from torch import Tensor, einsum, nn, zeros


def kronecker_embedding(layer: nn.Embedding, record: dict[str, Any]) -> nn.Module:
    """A table whose row v is `Σ_t pieces[v, t] ⊗ patterns[t]`, over r = `record["rank"]` terms."""
    return KroneckerEmbedding(layer, record["rank"], record["pattern"])


class KroneckerEmbedding(nn.Module):
    def __init__(self, table: nn.Embedding, rank: int, width: int):
        super().__init__()
        rows, hidden = table.num_embeddings, table.embedding_dim
        self.pieces = nn.Parameter(zeros(rows, rank, hidden // width))
        self.patterns = nn.Parameter(zeros(rank, width))

    def forward(self, index: Tensor) -> Tensor:
        return einsum("...ti,tj->...ij", self.pieces[index], self.patterns).flatten(-2)

    def tie(self, model: Any) -> None:
        """Give a head that had the weight of the table its factors."""
        head, tied = model.get_output_embeddings(), model.config.tie_word_embeddings
        if head is not None and tied and model.get_input_embeddings() is self:
            model.set_output_embeddings(KroneckerEmbeddingHead(self))
            # No weight has the name of another one any more.
            model._tied_weights_keys, model.all_tied_weights_keys = None, {}


class KroneckerEmbeddingHead(nn.Module):
    def __init__(self, table: KroneckerEmbedding):
        super().__init__()
        self._table = (table,)  # in a tuple, so that its parameters are not found twice

    def forward(self, x: Tensor) -> Tensor:
        pieces, patterns = self._table[0].pieces, self._table[0].patterns
        half = einsum("...ij,tj->...ti", x.unflatten(-1, (-1, patterns.shape[1])), patterns)
        return half.flatten(-2) @ pieces.flatten(1).T
