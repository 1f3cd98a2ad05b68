"""Decoder folders so small that they are compressed in seconds, with a text they can read."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from lpaf_jax.checkpoints import save_model
from lpaf_jax.models import parameters, set_parameters
from lpaf_jax.models.families import FAMILIES

VOCABULARY, LENGTH = 50, 16
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": LENGTH,
    },
}


def write_decoder(folder: Path, family: str, **fields: Any) -> Path:
    """A language model of random weights, large enough that its layers matter."""
    folder.mkdir(parents=True)
    values = {"model_type": family, "vocab_size": VOCABULARY, **SHAPES[family], **fields}
    (folder / "config.json").write_text(json.dumps(values))
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = FAMILIES[family]
    model: Any = kind.heads["lm"](kind.config(values), jax.random.key(0))
    random = np.random.default_rng(0)
    drawn = {
        path: 0.25 * random.normal(size=x.shape)
        if x.ndim > 1
        else x + 0.1 * random.normal(size=x.shape)
        for path, x in parameters(model).items()
    }
    set_parameters(model, drawn)
    save_model(model, folder, source=folder, label_names=None, card="# tiny\n")
    return folder


def narrow(folder: Path) -> Path:
    """Store the weights in `folder` as bfloat16."""
    file = folder / "model.safetensors"
    tensors = {name: x.astype(ml_dtypes.bfloat16) for name, x in load_file(file).items()}
    save_file(tensors, file)
    return folder


def write_text(path: Path, tokens: int, seed: int) -> Path:
    """Words in which some are far more frequent than others."""
    words = np.random.default_rng(seed).zipf(1.3, size=tokens) % VOCABULARY
    path.write_text(" ".join(f"w{i}" for i in words))
    return path
