"""What a person calls the matrices of a model: `layer 0, query` for a path of forty letters."""

import re
from collections.abc import Mapping
from typing import Any

from lpaf_jax.models.families import FAMILIES

# Paths below a block, of all families -> what the matrix does, in the order a block uses them.
_KINDS = {
    "attention.self.query": "query",
    "attention.q_lin": "query",
    "self_attn.q_proj": "query",
    "attention.self.key": "key",
    "attention.k_lin": "key",
    "self_attn.k_proj": "key",
    "attention.self.value": "value",
    "attention.v_lin": "value",
    "self_attn.v_proj": "value",
    "attn.c_attn": "q, k, v",
    "attention.output.dense": "attn out",
    "attention.out_lin": "attn out",
    "self_attn.o_proj": "attn out",
    "attn.c_proj": "attn out",
    "mlp.gate_proj": "ff gate",
    "intermediate.dense": "ff in",
    "ffn.lin1": "ff in",
    "mlp.c_fc": "ff in",
    "mlp.up_proj": "ff in",
    "output.dense": "ff out",
    "ffn.lin2": "ff out",
    "mlp.c_proj": "ff out",
    "mlp.down_proj": "ff out",
}
_TABLES = tuple({family.table.rpartition(".")[2] for family in FAMILIES.values()})
ORDER = list(dict.fromkeys(_KINDS.values()))
_NAME = re.compile(r"(?:^|\.)(\d+)\.(.+)$")


def parts(name: str) -> tuple[int, str]:
    """The layer's number, and what sort of matrix it is, of a path; -1 where it is in no layer."""
    found = _NAME.search(name)
    if found is None:
        return -1, "token embeddings" if name.endswith(_TABLES) else name
    return int(found[1]), _KINDS.get(found[2], found[2])


def kind(name: str) -> str:
    """What sort of matrix a path names, the layer's number left out."""
    return parts(name)[1]


def order(matrix: Mapping[str, Any]) -> tuple[int, int]:
    """Layer by number (10 after 9), then the order in which a layer uses its matrices."""
    layer, what = parts(matrix["name"])
    return layer, ORDER.index(what) if what in ORDER else len(ORDER)


def short_name(name: str) -> str:
    """`layer 0, query` for the path of a compressible kernel, its layer counted as there."""
    layer, what = parts(name)
    return what if layer < 0 else f"layer {layer}, {what}"
