"""A file of llama.cpp (GGUF) as a model folder: its config and tokenizer from its metadata."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from lpaf_jax.checkpoints.gguf_tensors import GGUF, write_index
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import LFS_POINTER, atomic_dir, write_json

# Of what is kept in the folder: another number makes all folders anew.
_VERSION = 1
_FAMILIES = ("llama", "qwen2", "qwen3", "gpt2")  # Mistral's are of the first
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# Of `rope_freqs.weight`, which Llama 3.1 and later have: low and high frequency factor, and the
# positions that the model was first trained on.
_LLAMA3 = (1.0, 4.0, 8192)


def gguf_folder(file: Path) -> Path:
    """The folder that stands for a file of llama.cpp.

    It lies in the user's cache and holds what the metadata say, as `config.json` and
    `tokenizer.json`, and a link to the file, whose tensors are unpacked when they are read.

    Raises:
        LpafError: the file is missing, damaged, or no model that can be read; the message says why.
    """
    if not file.is_file():
        raise LpafError(f"{file} does not exist")
    file = file.resolve()
    facts = file.stat()
    mark = f"{_VERSION} {file} {facts.st_size} {facts.st_mtime_ns}".encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.blake2b(mark, digest_size=6).hexdigest()
    folder = cache / "lpaf-jax" / "gguf" / f"{file.stem}-{digest}"
    if not (folder / "config.json").is_file():
        _write(folder, file)
    return folder


def _write(folder: Path, file: Path) -> None:
    metadata, tensors = _parsed(file)
    try:
        config = _config(metadata, {x.name: x for x in tensors})
        with atomic_dir(folder) as target:
            write_index(target, tensors, metadata)
            write_json(target / "config.json", config)
            _write_tokenizer(target, metadata)
            (target / GGUF).symlink_to(file)
    except KeyError as error:
        raise LpafError(f"{file} has no field {error.args[0]}") from None
    except LpafError as error:
        raise LpafError(f"{file}: {error}") from None


def _parsed(file: Path) -> tuple[dict[str, Any], list[Any]]:
    from gguf import GGUFEndian, GGUFReader

    with file.open("rb") as opened:
        start = opened.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise LpafError(f"{file} is a git-lfs pointer; run git lfs pull")
    if start[:4] != b"GGUF":
        raise LpafError(f"{file} is not a GGUF file, despite its name")
    try:
        reader = GGUFReader(file)
    except Exception as error:  # of a file that is cut off anything may be raised
        raise LpafError(f"{file} is damaged: {error}") from error
    if reader.endianess != GGUFEndian.LITTLE:
        raise LpafError(f"{file} is from a big-endian machine")
    return {key: field.contents() for key, field in reader.fields.items()}, reader.tensors


def _config(metadata: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    kind = metadata["general.architecture"]
    if metadata.get("general.type", "model") != "model":
        raise LpafError(f"it is not a model: its type is {metadata['general.type']}")
    if kind not in _FAMILIES:
        raise LpafError(
            f"architecture {kind!r} is not supported; supported are {', '.join(_FAMILIES)}"
        )
    if (parts := metadata.get("split.count", 1)) > 1:
        raise LpafError(f"it is one of {parts} parts: merge them with llama-gguf-split --merge")

    def said(name: str, otherwise: Any = None) -> Any:
        found = metadata.get(f"{kind}.{name}", otherwise)
        if found is None:
            raise KeyError(f"{kind}.{name}")
        if isinstance(found, list):
            raise LpafError(f"{kind}.{name} differs between layers, which is not supported")
        return found

    if metadata.get(f"{kind}.expert_count"):
        raise LpafError("it is a mixture of experts, which is not supported")
    heads, hidden = said("attention.head_count"), said("embedding_length")
    config: dict[str, Any] = {
        "model_type": kind,
        "architectures": ["GPT2LMHeadModel" if kind == "gpt2" else f"{kind.title()}ForCausalLM"],
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "dtype": _dtype(tensors),
    }
    for name, key in _SPECIAL.items():
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        config |= {} if token is None else {f"{name}_token_id": token}
    if kind == "gpt2":
        return config | {
            "n_embd": hidden,
            "n_head": heads,
            "n_layer": said("block_count"),
            "n_inner": said("feed_forward_length"),
            "n_positions": said("context_length"),
            "layer_norm_epsilon": said("attention.layer_norm_epsilon"),
        }
    head_dim = said("attention.key_length", said("rope.dimension_count", hidden // heads))
    if said("rope.dimension_count", head_dim) != head_dim:
        raise LpafError("only part of each head is rotated, which is not supported")
    return config | {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": said("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "num_hidden_layers": said("block_count"),
        "intermediate_size": said("feed_forward_length"),
        "max_position_embeddings": said("context_length"),
        "rms_norm_eps": said("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "rope_parameters": _rotary(kind, metadata, tensors, head_dim),
    }


def _dtype(tensors: dict[str, Any]) -> str:
    """That of the matrices as they are written: see `gguf_tensors.Place.dtype`."""
    kinds = {x.tensor_type.name for x in tensors.values() if len(x.shape) > 1}
    if kinds == {"F32"}:
        return "float32"
    return "float16" if kinds <= {"F16", "F32"} else "bfloat16"


def _rotary(
    kind: str, metadata: dict[str, Any], tensors: dict[str, Any], head_dim: int
) -> dict[str, Any]:
    theta = metadata.get(f"{kind}.rope.freq_base", 10_000.0)
    scaling = metadata.get(f"{kind}.rope.scaling.type", "none")
    found: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if "rope_freqs.weight" in tensors:
        divisors = np.asarray(tensors["rope_freqs.weight"].data, np.float64)
        return found | _as_llama3(divisors, theta ** -(np.arange(0, head_dim, 2) / head_dim))
    if scaling == "none":
        return found
    if scaling not in ("linear", "yarn"):
        raise LpafError(f"the rotary scaling {scaling!r} is not supported")
    found |= {"rope_type": scaling, "factor": metadata[f"{kind}.rope.scaling.factor"]}
    if scaling == "yarn":
        name = "original_max_position_embeddings"
        found[name] = metadata[f"{kind}.rope.scaling.original_context_length"]
    return found


def _as_llama3(divisors: np.ndarray, plain: np.ndarray) -> dict[str, Any]:
    """The parameters that Llama 3 has for frequencies that the file has divided one by one."""
    low, high, trained = _LLAMA3
    factor = round(float(divisors.max()), 3)
    turns = trained * plain / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    if not np.allclose(1 / divisors, (1 - blend) / factor + blend, rtol=1e-3):
        raise LpafError("the factors in rope_freqs.weight are not those of Llama 3")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": trained,
    }


def _write_tokenizer(folder: Path, metadata: dict[str, Any]) -> None:
    """The tokenizer that `transformers` makes of the metadata, if there is one in them."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        return
    from transformers import PreTrainedTokenizerFast

    # The package itself would import PyTorch.
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_TOKENIZER_MAPPING,
        convert_gguf_tokenizer,
    )

    named, settings = (
        {
            name: metadata[f"tokenizer.{key}"]
            for key, name in GGUF_TOKENIZER_MAPPING[part].items()
            if f"tokenizer.{key}" in metadata
        }
        for part in ("tokenizer", "tokenizer_config")
    )
    if named.get("tokenizer_type") == "llama":  # of which llama.cpp takes it unless told otherwise
        settings.setdefault("add_bos_token", True)
    for name, key in _SPECIAL.items():
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        settings[f"{name}_token"] = None if token is None else tokens[token]
    try:
        made, more = convert_gguf_tokenizer(metadata["general.architecture"], named)
        own = _own_tokens(made, len(tokens))
        known = PreTrainedTokenizerFast(tokenizer_object=own, **settings, **more)
    except Exception as error:  # bare ones of `tokenizers` among them
        raise LpafError(f"its tokenizer cannot be read: {error}") from error
    known.save_pretrained(folder)


def _own_tokens(made: Any, count: int) -> Any:
    """The tokenizer without the special tokens that its class adds to those of the file."""
    from tokenizers import Tokenizer

    values = json.loads(made.to_str())
    values["added_tokens"] = [x for x in values["added_tokens"] if x["id"] < count]
    return Tokenizer.from_str(json.dumps(values))
