"""Tensors in a file of llama.cpp (GGUF), by the names that Hugging Face's folders have.

They are blocks of codes with scales, matrices (out, in) in all families. Nothing is unpacked before
it is asked for, and of a matrix no more than the rows that are, where the file has them in order.
"""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json, write_json

GGUF = "model.gguf"
"""What the file is called in the folder that `gguf_folder` makes for it."""
_INDEX = "tensors.json"

_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# Stored as they are; what is quantized is read as float32, and written as bfloat16: the scales of a
# block may be larger than float16 holds.
_PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


class Place(NamedTuple):
    """Where a tensor lies in the file, and how.

    Attributes:
        kind: of its numbers, as llama.cpp calls it: Q4_1.
        shape: as a folder of Hugging Face has it.
        offset, size: in bytes.
        heads: how many there are whose rows are in the order of llama.cpp's rotary embedding, which
            turns neighbours; 0 where none are.
        turned: whether it lies transposed.
    """

    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int
    heads: int = 0
    turned: bool = False

    @property
    def is_coded(self) -> bool:
        """Whether its numbers are codes with scales."""
        return self.kind not in _PLAIN

    @property
    def dtype(self) -> str:
        """What it is stored as where it is written, as safetensors calls it."""
        return "BF16" if self.is_coded else self.kind


def write_index(folder: Path, tensors: list[Any], metadata: dict[str, Any]) -> None:
    """Keep beside the file where its tensors lie: to parse it takes seconds.

    Args:
        folder: of the file.
        tensors: as `gguf.GGUFReader` has them. metadata: by key.

    Raises:
        LpafError: one is of a kind that cannot be unpacked.
    """
    architecture = metadata["general.architecture"]
    heads = int(metadata[f"{architecture}.attention.head_count"])
    shared = int(metadata.get(f"{architecture}.attention.head_count_kv", heads))
    found = {}
    for tensor in tensors:
        kind, shape = tensor.tensor_type.name, tuple(int(n) for n in reversed(tensor.shape))
        if kind not in _kinds():
            raise LpafError(
                f"tensor {tensor.name} is stored as {kind}, which is not supported; supported are "
                f"{', '.join(_kinds())}"
            )
        # Of these alone llama.cpp has rewritten the query and key rows.
        turns = {"attn_q": heads, "attn_k": shared} if architecture == "llama" else {}
        match = _BLOCK.fullmatch(tensor.name)
        layer = (match[2] if match else tensor.name).rpartition(".")[0]
        turned = architecture == "gpt2" and match is not None and len(shape) == 2
        found[hugging_face_name(tensor.name, architecture)] = Place(
            kind,
            shape[::-1] if turned else shape,
            int(tensor.data_offset),
            int(tensor.n_bytes),
            turns.get(layer, 0),
            turned,
        )
    write_json(folder / _INDEX, found)


def hugging_face_name(name: str, architecture: str) -> str:
    """What a tensor is called in a folder of Hugging Face; its own name where that is not known."""
    known, blocks = (_GPT2, "transformer.h") if architecture == "gpt2" else (_LLAMA, "model.layers")
    match = _BLOCK.fullmatch(name)
    layer, _, leaf = (match[2] if match else name).rpartition(".")
    if layer not in known:
        return name
    return f"{blocks}.{match[1]}.{known[layer]}.{leaf}" if match else f"{known[layer]}.{leaf}"


def gguf_places(file: Path) -> dict[str, Place]:
    """Where the tensors of `file` lie, by name; see `write_index`."""
    return _places(file.parent / _INDEX)


@functools.lru_cache(maxsize=2)
def _places(index: Path) -> dict[str, Place]:
    return {
        name: Place(kind, tuple(shape), *rest)
        for name, (kind, shape, *rest) in read_json(index).items()
    }


def gguf_rows(file: Path, name: str, rows: slice) -> np.ndarray:
    """Rows of a tensor, unpacked: in float32, or as they are stored where they are no codes.

    Raises:
        LpafError: the file is damaged or cannot be read.
    """
    place = gguf_places(file)[name]
    whole = place.turned or place.heads > 0
    height = 1 if len(place.shape) == 1 else place.shape[1 if place.turned else 0]
    taken = range(height) if whole or len(place.shape) == 1 else range(*rows.indices(height))
    width = place.size // height
    try:
        with file.open("rb") as opened:
            opened.seek(place.offset + taken.start * width)
            codes = np.frombuffer(opened.read(len(taken) * width), np.uint8)
        found = _unpacked(codes.reshape(len(taken), width), place.kind)
    except (OSError, ValueError) as error:
        raise LpafError(f"{file.resolve()} is damaged or cannot be read: {error}") from error
    if len(place.shape) == 1:
        return found.reshape(-1)[rows]
    if place.turned:
        return found.T[rows]
    return found[_order(height, place.heads)[rows]] if place.heads else found


def _order(rows: int, heads: int) -> np.ndarray:
    """Which row of the file each one is: Hugging Face's rotary embedding turns two halves."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _unpacked(codes: np.ndarray, kind: str) -> np.ndarray:
    if kind in _PLAIN:
        return codes.view(_PLAIN[kind])
    from gguf import GGMLQuantizationType, dequantize

    found: np.ndarray = dequantize(codes, GGMLQuantizationType[kind])
    return found


@functools.cache
def _kinds() -> list[str]:
    from gguf.quants import _type_traits  # what `dequantize` looks up, and tells nowhere else

    return [*_PLAIN, *(kind.name for kind in _type_traits if kind.name not in _PLAIN)]
