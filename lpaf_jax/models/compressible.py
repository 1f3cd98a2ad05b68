"""Which matrices a compression is about, and what share of them a model keeps."""

import re
from typing import Literal

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.functional import Params

_KERNELS = (
    # BERT and RoBERTa
    r"encoder\.layer\.\d+\."
    r"(attention\.self\.(query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)",
    # DistilBERT
    r"transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])",
    # GPT-2, whose c_attn is query, key and value in one
    r"h\.\d+\.(attn\.(c_attn|c_proj)|mlp\.(c_fc|c_proj))",
    # Llama
    r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
)
# Of layers, by the ends of their paths.
_QUERIES_KEYS = re.compile(r"\.(self\.(query|key)|[qk]_lin|self_attn\.[qk]_proj)$")
_VALUES_OUTPUTS = re.compile(
    r"\.(self\.value|attention\.output\.dense|(v|out)_lin|self_attn\.[vo]_proj)$"
)
_FEED_FORWARD = re.compile(r"(\d\.intermediate\.dense|\d\.output\.dense|ffn\.lin[12]|\.mlp\.\w+)$")
_ALL_IN_ONE = re.compile(r"\.attn\.c_attn$")
# Of whatever kind its factors are.
_COMPRESSIBLE = re.compile(rf"(^|\.)({'|'.join(_KERNELS)})\.(?!(bias|mask|draw)$)\w+$")


def is_compressible(path: str) -> bool:
    """Whether the parameter at `path` is a kernel of a transformer block, or a factor of one.

    Query, key, value, attention output and the feed-forward kernels; embeddings, biases, norms,
    pooler and head are left alone (the paper's choice).
    """
    return _COMPRESSIBLE.search(path) is not None


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
    if _ALL_IN_ONE.search(path):
        raise LpafError(
            f"{path} holds queries, keys and values in one matrix, which this rank rule cannot "
            "separate; use another recipe or --ranks share"
        )
    if _QUERIES_KEYS.search(path):
        return "query-key"
    return "value-output" if _VALUES_OUTPUTS.search(path) else None


def is_feed_forward(path: str) -> bool:
    """Whether a compressible layer is a feed-forward one, and none of attention."""
    return _FEED_FORWARD.search(path) is not None


def count_parameters(params: Params) -> dict[str, int]:
    """Stored numbers: of the compressible matrices ("encoder") and of all ("total")."""
    encoder = sum(array.size for array in compressible(params).values())
    return {"encoder": encoder, "total": sum(array.size for array in params.values())}
