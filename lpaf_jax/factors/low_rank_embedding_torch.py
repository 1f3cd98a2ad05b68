"""A narrow table of embeddings and a matrix in PyTorch."""

from collections import OrderedDict
from typing import Any

from torch import nn


def low_rank_embedding(layer: nn.Embedding, record: dict[str, Any]) -> nn.Module:
    """A table of width E = `record["rank"]`, and a linear layer from there to the width it had.

    In place of V H numbers `codes.weight`, (V, E), and `basis.weight`, (H, E), have E (V + H).
    """
    codes = nn.Embedding(layer.num_embeddings, record["rank"], padding_idx=layer.padding_idx)
    basis = nn.Linear(record["rank"], layer.embedding_dim, bias=False)
    return nn.Sequential(OrderedDict(codes=codes, basis=basis))
