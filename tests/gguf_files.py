"""Small files of llama.cpp, written by its own package."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

WORDS = {"<|end|>": 3, "<|user|>": 4}  # control, user-defined
WIDTH, BLOCKS, HEADS, SHARED = 64, 2, 4, 2
# What PyTorch takes as given, whatever the file says.
INNER, POSITIONS, HEAD = {"gpt2": 4 * WIDTH}, {"gpt2": 1024}, {"qwen3": 128}


_PLAIN = {"F32": np.float32, "F16": np.float16, "I8": np.int8}


def tokens() -> list[str]:
    """Special tokens, the 256 bytes, and a few pairs of them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [*WORDS, *bytes_to_unicode().values(), "th", "in", "Ġth"]


def write_gguf(
    path: Path,
    kind: str = "llama",
    stored: str = "F32",
    said: dict[str, Any] | None = None,
    more: dict[str, tuple[np.ndarray, str]] | None = None,
) -> Path:
    """A model of random weights.

    Args:
        path: of the file. kind: its architecture. stored: what its matrices are.
        said: metadata that are added; None leaves one out. more: tensors that are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {
        f"{kind}.context_length": POSITIONS.get(kind, 32),
        f"{kind}.block_count": BLOCKS,
        f"{kind}.embedding_length": WIDTH,
        f"{kind}.feed_forward_length": INNER.get(kind, 96),
        f"{kind}.attention.head_count": HEADS,
    }
    if kind == "gpt2":
        facts |= {f"{kind}.attention.layer_norm_epsilon": 1e-5}
    else:
        facts |= {
            f"{kind}.attention.head_count_kv": SHARED,
            f"{kind}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{kind}.rope.freq_base": 5000.0,
            f"{kind}.rope.dimension_count": head_of(kind),
            f"{kind}.attention.key_length": head_of(kind),
        }
    random = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes(kind).items():
        w = random.normal(size=shape).astype(np.float32) * (0.2 if len(shape) > 1 else 0.1)
        tensors[name] = (w + name.endswith("norm.weight"), stored if len(shape) > 1 else "F32")
    return write_tensors(
        path, kind, tensors | (more or {}), facts | (said or {}), with_tokenizer=True
    )


def write_tensors(
    path: Path,
    kind: str,
    tensors: dict[str, tuple[np.ndarray, str]],
    facts: dict[str, Any],
    with_tokenizer: bool = False,
) -> Path:
    """A file of tensors, by name with what they are stored as: numbers, or codes (uint8)."""
    writer = gguf.GGUFWriter(path, kind)
    for key, value in facts.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add[type(value)](key, value)
    if with_tokenizer:
        _add_tokenizer(writer)
    for name, (w, stored) in tensors.items():
        quantized = gguf.GGMLQuantizationType[stored]
        if stored in _PLAIN:
            writer.add_tensor(name, w.astype(_PLAIN[stored]))
        else:
            codes = w if w.dtype == np.uint8 else gguf.quantize(w, quantized)
            writer.add_tensor(name, codes, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def head_of(kind: str) -> int:
    """Width of a head."""
    return HEAD.get(kind, WIDTH // HEADS)


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Of all tensors, by llama.cpp's name."""
    vocabulary, inner, head = len(tokens()), INNER.get(kind, 96), head_of(kind)
    own, shared = HEADS * head, SHARED * head
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, WIDTH)}
    found |= {"output_norm.weight": (WIDTH,)}
    block: dict[str, tuple[int, ...]] = {"attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,)}
    if kind == "gpt2":
        found |= {"output_norm.bias": (WIDTH,), "position_embd.weight": (POSITIONS[kind], WIDTH)}
        block |= {"attn_norm.bias": (WIDTH,), "ffn_norm.bias": (WIDTH,)}
        block |= {"attn_qkv.weight": (3 * WIDTH, WIDTH), "attn_qkv.bias": (3 * WIDTH,)}
        block |= {"attn_output.weight": (WIDTH, WIDTH), "attn_output.bias": (WIDTH,)}
        block |= {"ffn_up.weight": (inner, WIDTH), "ffn_up.bias": (inner,)}
        block |= {"ffn_down.weight": (WIDTH, inner), "ffn_down.bias": (WIDTH,)}
    else:
        block |= {"attn_q.weight": (own, WIDTH), "attn_output.weight": (WIDTH, own)}
        block |= {f"attn_{x}.weight": (shared, WIDTH) for x in "kv"}
        block |= {f"ffn_{x}.weight": (inner, WIDTH) for x in ("gate", "up")}
        block |= {"ffn_down.weight": (WIDTH, inner)}
    if kind == "qwen2":
        block |= {"attn_q.bias": (WIDTH,), "attn_k.bias": (shared,), "attn_v.bias": (shared,)}
        found |= {"output.weight": (vocabulary, WIDTH)}
    if kind == "qwen3":
        block |= {f"attn_{x}_norm.weight": (head,) for x in "qk"}
    return found | {f"blk.{i}.{name}": x for i in range(BLOCKS) for name, x in block.items()}


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    listed = tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(listed)
    writer.add_token_types([WORDS.get(token, 1) for token in listed])
    writer.add_token_merges(["t h", "i n", "Ġ th"])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
