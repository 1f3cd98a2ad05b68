"""Fewer channels in PyTorch."""

from typing import Any

from torch import Tensor, cat, nn


def sliced(layer: Any, record: dict[str, Any]) -> nn.Module:
    """A linear layer from `record["inputs"]` to `record["outputs"]` channels, with its bias.

    With `record["heads"]` it takes, or gives, all channels of the heads: those that are left are
    the first of each, and zeros stand for the others.
    """
    size, bias = (record["inputs"], record["outputs"]), layer.bias is not None
    heads = record.get("heads")
    return nn.Linear(*size, bias=bias) if heads is None else SlicedHeads(*size, bias, heads)


class SlicedHeads(nn.Linear):
    def __init__(self, inputs: int, outputs: int, bias: bool, heads: dict[str, Any]):
        super().__init__(inputs, outputs, bias=bias)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        width, left = self.heads["width"], self.heads["left"]
        if self.heads["side"] == "inputs":
            heads = zip(x.split(width, dim=-1), left, strict=True)
            return super().forward(cat([x[..., :n] for x, n in heads], dim=-1))
        heads = zip(super().forward(x).split(left, dim=-1), left, strict=True)
        pad = nn.functional.pad
        return cat([pad(y, (0, width - n)) for y, n in heads], dim=-1)
