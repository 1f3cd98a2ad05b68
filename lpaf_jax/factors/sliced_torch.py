"""Fewer channels in PyTorch."""

from typing import Any

from torch import nn


def sliced(layer: Any, record: dict[str, Any]) -> nn.Module:
    """A linear layer from `record["inputs"]` to `record["outputs"]` channels, with its bias."""
    return nn.Linear(record["inputs"], record["outputs"], bias=layer.bias is not None)
