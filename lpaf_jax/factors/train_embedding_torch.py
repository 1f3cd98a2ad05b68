"""A table of embeddings whose rows are tensor trains in PyTorch."""

from typing import Any

from torch import Tensor, arange, cat, nn, zeros


def train_embedding(layer: nn.Embedding, record: dict[str, Any]) -> nn.Module:
    """A table whose row v is the train of `core_1[v]`, `core_2[v]`, ..."""
    return TrainEmbedding(layer, record["rank"], record["digits"])


class TrainEmbedding(nn.Module):
    def __init__(self, table: nn.Embedding, rank: int, digits: list[int]):
        super().__init__()
        self.rows, self.count = table.num_embeddings, len(digits)
        left, before, after = 1, 1, table.embedding_dim
        for i, digit in enumerate(digits, 1):
            before, after = before * digit, after // digit
            right = min(rank, before, after)
            core = zeros(self.rows, left, digit, right)
            self.register_parameter(f"core_{i}", nn.Parameter(core))
            left = right

    def forward(self, index: Tensor) -> Tensor:
        places = index.reshape(-1)
        first, *rest = (getattr(self, f"core_{i + 1}")[places] for i in range(self.count))
        found = first.flatten(1, 2)
        for core in rest:
            found = (found @ core.flatten(2)).reshape(places.shape[0], -1, core.shape[-1])
        return found.reshape(*index.shape, -1)

    def tie(self, model: Any) -> None:
        """Give a head that had the weight of the table its rows."""
        head, tied = model.get_output_embeddings(), model.config.tie_word_embeddings
        if head is not None and tied and model.get_input_embeddings() is self:
            model.set_output_embeddings(TrainEmbeddingHead(self))
            # No weight has the name of another one any more.
            model._tied_weights_keys, model.all_tied_weights_keys = None, {}


class TrainEmbeddingHead(nn.Module):
    """Rows are rebuilt some thousand at a time: all of them are what was to be saved."""

    def __init__(self, table: TrainEmbedding):
        super().__init__()
        self._table = (table,)  # in a tuple, so that its parameters are not found twice

    def forward(self, x: Tensor) -> Tensor:
        table = self._table[0]
        places = arange(table.rows, device=x.device)
        return cat([x @ table(some).T for some in places.split(4096)], dim=-1)
