"""A narrow table of embeddings and a matrix in PyTorch."""

from typing import Any

from torch import Tensor, nn


def low_rank_embedding(layer: nn.Embedding, record: dict[str, Any]) -> nn.Module:
    """A table of width E = `record["rank"]`, and a linear layer from there to the width it had.

    In place of V H numbers `codes.weight`, (V, E), and `basis.weight`, (H, E), have E (V + H).
    """
    return LowRankEmbedding(layer, record["rank"])


class LowRankEmbedding(nn.Module):
    def __init__(self, table: nn.Embedding, rank: int):
        super().__init__()
        self.codes = nn.Embedding(table.num_embeddings, rank, padding_idx=table.padding_idx)
        self.basis = nn.Linear(rank, table.embedding_dim, bias=False)

    def forward(self, index: Tensor) -> Tensor:
        return self.basis(self.codes(index))

    def tie(self, model: Any) -> None:
        """Give a head that had the weight of the table its factors."""
        head, tied = model.get_output_embeddings(), model.config.tie_word_embeddings
        if head is not None and tied and model.get_input_embeddings() is self:
            model.set_output_embeddings(LowRankEmbeddingHead(self))
            # No weight has the name of another one any more.
            model._tied_weights_keys, model.all_tied_weights_keys = None, {}


class LowRankEmbeddingHead(nn.Module):
    def __init__(self, table: LowRankEmbedding):
        super().__init__()
        self._table = (table,)  # in a tuple, so that its parameters are not found twice

    def forward(self, x: Tensor) -> Tensor:
        table = self._table[0]
        return (x @ table.basis.weight) @ table.codes.weight.T
