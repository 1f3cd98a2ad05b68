"""Tiny BERT folders in the Hugging Face layout, written without the package under test."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lpaf_jax.checkpoints import load_model, resolve_model
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import (
    BertClassifier,
    LowRankLinear,
    MixedLinear,
    compressible_layers,
    layer_at,
    parameters,
    replace_layer,
)

Tensors = dict[str, np.ndarray]
WriteFolder = Callable[..., Path]

TINY = {
    "model_type": "bert",
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "id2label": {"0": "bad", "1": "good", "2": "other"},
}


def tiny_tensors(seed: int) -> Tensors:
    """What a `BertForSequenceClassification` of `TINY` holds, with (out, in) weights.

    Deviation 0.3, not BERT's 0.02, at which attention is so even that a wrong one goes unseen.
    """
    rng = np.random.default_rng(seed)
    hidden, inner = TINY["hidden_size"], TINY["intermediate_size"]
    tensors: Tensors = {}

    def weight(name: str, *shape: int) -> None:
        tensors[f"{name}.weight"] = rng.normal(0, 0.3, shape).astype(np.float32)

    def linear(name: str, n: int, m: int) -> None:
        weight(name, n, m)
        tensors[f"{name}.bias"] = rng.normal(0, 0.3, n).astype(np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = rng.uniform(0.5, 1.5, hidden).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(0, 0.3, hidden).astype(np.float32)

    weight("bert.embeddings.word_embeddings", TINY["vocab_size"], hidden)
    weight("bert.embeddings.position_embeddings", TINY["max_position_embeddings"], hidden)
    weight("bert.embeddings.token_type_embeddings", TINY["type_vocab_size"], hidden)
    norm("bert.embeddings.LayerNorm")
    for i in range(TINY["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, hidden)
        linear(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.output.LayerNorm")
    linear("bert.pooler.dense", hidden, hidden)
    linear("classifier", len(TINY["id2label"]), hidden)
    return tensors


def fill_folder(folder: Path, tensors: Tensors, **changes: Any) -> Path:
    values = {k: v for k, v in {**TINY, **changes}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(values))
    if tensors:
        save_file(tensors, folder / "model.safetensors")
    return folder


def low_rank(kernel: jax.Array, rank: int) -> LowRank:
    u, s, vt = np.linalg.svd(kernel, full_matrices=False)
    return LowRank(jnp.asarray(u[:, :rank] * s[:rank]), jnp.asarray(vt[:rank]))


@pytest.fixture
def tensors() -> Tensors:
    return tiny_tensors(0)


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """`write_folder(tensors, **changes to config.json) -> folder`; None removes a field."""
    count = iter(range(100))

    def write(tensors: Tensors, **changes: Any) -> Path:
        folder = tmp_path / f"checkpoint{next(count)}"
        folder.mkdir()
        return fill_folder(folder, tensors, **changes)

    return write


@pytest.fixture
def folder(write_folder: WriteFolder, tensors: Tensors) -> Path:
    """A whole tiny checkpoint."""
    return write_folder(tensors)


@pytest.fixture
def model(folder: Path) -> BertClassifier:
    return load_model(folder)


@pytest.fixture
def factorized(folder: Path) -> BertClassifier:
    """The tiny model with every compressible layer factorized, at ranks that differ."""
    model = load_model(folder)
    for i, path in enumerate(compressible_layers(parameters(model))):
        dense = layer_at(model, path)
        factors = low_rank(dense.kernel[...], 3 + i % 4)
        replace_layer(model, path, LowRankLinear(factors, dense.bias[...]))
    return model


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> BertClassifier:
    """One transformer block whose six layers are mixed, with half of each kernel masked.

    Shared by all tests: read it, never change it.
    """
    folder = tmp_path_factory.mktemp("mixed")
    model = load_model(fill_folder(folder, tiny_tensors(0), num_hidden_layers=1))
    rng = np.random.default_rng(2)
    for path in compressible_layers(parameters(model)):
        dense = layer_at(model, path)
        kernel, bias = dense.kernel[...], dense.bias[...]
        mask = jnp.asarray(rng.random(kernel.shape) < 0.5)
        replace_layer(model, path, MixedLinear(kernel, mask, low_rank(kernel, 3), bias))
    return model


@pytest.fixture
def batch() -> dict[str, jax.Array]:
    """Sentence pairs of 9, 5 and 1 tokens, padded with tokens that would show if attended."""
    rng = np.random.default_rng(1)
    lengths = np.array([9, 5, 1])[:, None]
    place = np.arange(9)
    return {
        "input_ids": jnp.asarray(rng.integers(0, TINY["vocab_size"], (3, 9)), jnp.int32),
        "attention_mask": jnp.asarray(place < lengths, jnp.int32),
        "token_type_ids": jnp.asarray((place >= lengths // 2) & (place < lengths), jnp.int32),
    }


@pytest.fixture(scope="session")
def jit() -> Callable[..., Any]:
    """`jax.jit` without optimisation: tests this small wait for the compiler alone."""
    return partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="session")
def evaluate(jit: Any) -> Callable[..., np.ndarray]:
    """`evaluate(model, batch, key=None) -> logits`, compiled once for each structure of model.

    A module called as it stands would compile every operation by itself.
    """

    @jit
    def forward(model: BertClassifier, batch: dict[str, jax.Array], key: Any) -> jax.Array:
        return model(**batch, key=key)

    return lambda model, batch, key=None: np.asarray(forward(model, batch, key))


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    return resolve_model("minilm")


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> BertClassifier:
    """The packaged MiniLM. Shared by all tests: read it, never change it."""
    return load_model(minilm_folder, num_labels=3)


@pytest.fixture(scope="session")
def minilm_logits(minilm: BertClassifier, minilm_batch: Any, evaluate: Any) -> np.ndarray:
    return evaluate(minilm, minilm_batch)


@pytest.fixture(scope="session")
def minilm_batch(minilm_folder: Path) -> dict[str, np.ndarray]:
    """Real sentences and pairs, padded to the longest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    texts = [
        ("A film of quiet wit, and far better than its trailer had led anybody to expect.", None),
        ("Who wrote it?", "The script is credited to two brothers from Lyon."),
        ("Dull.", None),
    ]
    rows = tokenizer.encode_batch([t if pair is None else (t, pair) for t, pair in texts])
    return {
        "input_ids": np.array([row.ids for row in rows], np.int32),
        "attention_mask": np.array([row.attention_mask for row in rows], np.int32),
        "token_type_ids": np.array([row.type_ids for row in rows], np.int32),
    }
