"""A table of embeddings as a sum of Kronecker products in PyTorch."""

from typing import Any

from torch import Tensor, cat, einsum, nn, zeros


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
        places = self.fine.shape[0]
        a, b = self.coarse[index // places], self.fine[index % places]
        return einsum("...ti,...tj->...ij", a, b).flatten(-2)

    def tie(self, model: Any) -> None:
        """Give a head that had the weight of the table its rows."""
        head, tied = model.get_output_embeddings(), model.config.tie_word_embeddings
        if head is not None and tied and model.get_input_embeddings() is self:
            model.set_output_embeddings(KroneckerSumEmbeddingHead(self))
            # No weight has the name of another one any more.
            model._tied_weights_keys, model.all_tied_weights_keys = None, {}


class KroneckerSumEmbeddingHead(nn.Module):
    """Rows are rebuilt some thousand at a time: all of them are what was to be saved."""

    def __init__(self, table: KroneckerSumEmbedding):
        super().__init__()
        self._table = (table,)  # in a tuple, so that its parameters are not found twice

    def forward(self, x: Tensor) -> Tensor:
        table = self._table[0]
        groups = table.coarse.split(max(1, 4096 // table.fine.shape[0]))
        rows = (einsum("gti,vtj->gvij", some, table.fine).flatten(2) for some in groups)
        return cat([x @ some.flatten(0, 1).T for some in rows], dim=-1)[..., : table.rows]
