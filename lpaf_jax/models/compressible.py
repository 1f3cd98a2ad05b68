"""Which matrices a compression is about, and what share of them a model keeps."""

import re
from typing import Literal, NamedTuple

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.models.functional import Params
from lpaf_jax.models.layouts import Layout

# Of a layer, what holds no matrix.
_NO_MATRIX = ("bias", "mask", "draw")
_LAYOUTS = tuple(dict.fromkeys(family.layout for family in FAMILIES.values()))
_NAMES = "|".join(sorted({re.escape(layout.blocks) for layout in _LAYOUTS}))
_BLOCK = re.compile(rf"((?:^|.*\.)({_NAMES})\.\d+)\.([\w.]+)")


class Place(NamedTuple):
    """Where a compressible layer is: `path` in the block at `block`, whose layers are `layout`."""

    layout: Layout
    block: str
    path: str


def place_of(layer: str) -> Place | None:
    """Where the layer at a path is; None where it is no compressible one."""
    found = _BLOCK.fullmatch(layer)
    if found is None:
        return None
    block, blocks, path = found.groups()
    of = (each for each in _LAYOUTS if each.blocks == blocks and path in each.layers)
    return next((Place(layout, block, path) for layout in of), None)


def is_compressible(path: str) -> bool:
    """Whether the parameter at `path` is a kernel of a transformer block, or a factor of one.

    Query, key, value, attention output and the feed-forward kernels; embeddings, biases, norms,
    pooler and head are left alone (the paper's choice).
    """
    layer, _, leaf = path.rpartition(".")
    return leaf not in _NO_MATRIX and place_of(layer) is not None


def compressible(params: Params) -> Params:
    """The part of `params` that a compression is about, by path."""
    return {path: array for path, array in params.items() if is_compressible(path)}


def compressible_layers(params: Params) -> list[str]:
    """Paths of the layers whose kernel is compressible, in the model's order."""
    found = {path.rpartition(".")[0] for path in compressible(params)}
    return sorted(found, key=lambda p: [int(x) if x.isdigit() else x for x in p.split(".")])


def side_of_attention(path: str) -> Literal["query-key", "value-output"] | None:
    """Which pair of matrices of attention a layer is of; None if it is no part of it.

    Raises:
        LpafError: it is of both.
    """
    place = place_of(path)
    if place is None or place.path in place.layout.feed_forward:
        return None
    if place.path in (place.layout.values, place.layout.output):
        if place.path == place.layout.queries:
            raise LpafError(
                f"{path} holds queries, keys and values in one matrix, which this rank rule cannot "
                "separate; use another recipe or --ranks share"
            )
        return "value-output"
    return "query-key"


def is_feed_forward(path: str) -> bool:
    """Whether a compressible layer is a feed-forward one, and none of attention."""
    place = place_of(path)
    return place is not None and place.path in place.layout.feed_forward


def count_parameters(params: Params) -> dict[str, int]:
    """Stored numbers: of the compressible matrices ("encoder") and of all ("total")."""
    encoder = sum(array.size for array in compressible(params).values())
    return {"encoder": encoder, "total": sum(array.size for array in params.values())}
