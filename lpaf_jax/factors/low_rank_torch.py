"""Two thin factors in PyTorch."""

from collections import OrderedDict
from typing import Any

from torch import nn


def low_rank(layer: Any, record: dict[str, Any]) -> nn.Module:
    """Two linear layers of rank k = `record["rank"]`.

    A layer `y = W x + c` with W of shape (n, m) becomes `y = up (down x) + c`, where `down.weight`
    is (k, m) and `up.weight` is (n, k): k (m + n) numbers in the place of m n.
    """
    # The Conv1D of GPT-2 keeps its weight as (in, out), and nn.Linear as (out, in).
    n, m = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.T.shape
    down = nn.Linear(m, record["rank"], bias=False)
    up = nn.Linear(record["rank"], n, bias=layer.bias is not None)
    return nn.Sequential(OrderedDict(down=down, up=up))
