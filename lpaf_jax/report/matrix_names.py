"""What a person calls the matrices of a model: `layer 0, query` for a path of forty letters."""

import re
from collections.abc import Mapping
from typing import Any

from lpaf_jax.models.families import FAMILIES
from lpaf_jax.models.layouts import Layout

# What a matrix does, in the order a block uses them.
ORDER = ["query", "key", "value", "q, k, v", "attn out", "ff gate", "ff in", "ff out"]


def _kinds(layout: Layout) -> dict[str, str]:
    """What each matrix of a block does, by its path there."""
    gate = dict.fromkeys(layout.into[:-1], "ff gate")
    together = {layout.queries: "q, k, v"}
    apart = {layout.queries: "query", layout.keys: "key", layout.values: "value"}
    return {
        **(apart if layout.apart else together),
        layout.output: "attn out",
        **gate,
        layout.into[-1]: "ff in",
        layout.out: "ff out",
    }


_KINDS = {
    path: what for family in FAMILIES.values() for path, what in _kinds(family.layout).items()
}
_TABLES = tuple({family.table.rpartition(".")[2] for family in FAMILIES.values()})
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
