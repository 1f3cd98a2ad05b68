"""The forward pass against a float64 BERT written out in numpy, and what padding must not do."""

import json
import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import erf

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.models import BertClassifier, BertConfig, bert, encoder, parameters

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def reference(tensors: dict[str, np.ndarray], values: dict[str, Any], batch: Any) -> np.ndarray:
    """Logits of BERT in float64 (Devlin et al., 2019), one sequence at a time, padding cut off."""
    t = {name.removeprefix("bert."): array.astype(float) for name, array in tensors.items()}
    heads = values["num_attention_heads"]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + values.get("layer_norm_eps", 1e-12)
        )
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    def attend(name: str, x: np.ndarray) -> np.ndarray:
        parts = [np.split(linear(f"{name}.{p}", x), heads, -1) for p in ("query", "key", "value")]
        out = []
        for q, k, v in zip(*parts, strict=True):
            scores = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
            out.append(scores / scores.sum(-1, keepdims=True) @ v)
        return np.concatenate(out, -1)

    logits = []
    rows = (np.asarray(batch[k]) for k in ("input_ids", "token_type_ids", "attention_mask"))
    for ids, types, mask in zip(*rows, strict=True):
        n = mask.sum()
        x = t["embeddings.word_embeddings.weight"][ids[:n]]
        x = x + t["embeddings.position_embeddings.weight"][:n]
        x = x + t["embeddings.token_type_embeddings.weight"][types[:n]]
        x = norm("embeddings.LayerNorm", x)
        for i in range(values["num_hidden_layers"]):
            layer = f"encoder.layer.{i}"
            y = linear(f"{layer}.attention.output.dense", attend(f"{layer}.attention.self", x))
            x = norm(f"{layer}.attention.output.LayerNorm", x + y)
            y = linear(f"{layer}.intermediate.dense", x)
            y = linear(f"{layer}.output.dense", ACTIVATIONS[values["hidden_act"]](y))
            x = norm(f"{layer}.output.LayerNorm", x + y)
        logits.append(linear("classifier", np.tanh(linear("pooler.dense", x[0]))))
    return np.stack(logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"hidden_act": "gelu_new", "num_attention_heads": 8},
        {"hidden_act": "relu", "layer_norm_eps": 0.3},
    ],
    ids=str,
)
def test_logits_equal_the_reference(write_folder, tensors, batch, evaluate, changes):
    folder = write_folder(tensors, **changes)
    values = json.loads((folder / "config.json").read_text())
    logits = evaluate(load_model(folder), batch)
    np.testing.assert_allclose(logits, reference(tensors, values, batch), atol=1e-5)


def test_minilm_equals_the_reference(minilm, minilm_folder, minilm_batch, minilm_logits):
    tensors = load_file(minilm_folder / "model.safetensors")
    tensors["classifier.weight"] = np.asarray(minilm.classifier.kernel[...]).T
    tensors["classifier.bias"] = np.asarray(minilm.classifier.bias[...])
    values = json.loads((minilm_folder / "config.json").read_text())
    expected = reference(tensors, values, minilm_batch)
    assert np.ptp(expected, axis=0).max() > 1e-2, "the inputs would not tell one row from another"
    np.testing.assert_allclose(minilm_logits, expected, atol=1e-5)


def test_what_stands_under_the_padding_changes_nothing(model, batch, evaluate):
    padding = batch["attention_mask"] == 0
    other = {
        **batch,
        "input_ids": jnp.where(padding, 7, batch["input_ids"]),
        "token_type_ids": jnp.where(padding, 1, batch["token_type_ids"]),
    }
    np.testing.assert_array_equal(evaluate(model, other), evaluate(model, batch))


def test_a_row_of_padding_alone_is_finite_and_leaves_the_others_alone(model, batch, evaluate):
    empty = {**batch, "attention_mask": batch["attention_mask"].at[2].set(0)}
    logits = evaluate(model, empty)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits[:2], evaluate(model, batch)[:2])


def test_inputs_end_where_the_positions_end(model, batch):
    def shape(length):
        inputs = {name: jnp.resize(array, (1, length)) for name, array in batch.items()}
        return jax.eval_shape(lambda: model(**inputs)).shape

    assert shape(20) == (1, 3)
    with pytest.raises(LpafError, match="21 tokens exceed the 20 positions"):
        shape(21)


def test_dropout_has_a_key_of_its_own_at_every_site(write_folder, tensors, batch, monkeypatch):
    rates = {"hidden_dropout_prob": 0.125, "attention_probs_dropout_prob": 0.25}
    model = load_model(write_folder(tensors, **rates, classifier_dropout=0.5))
    seen = []

    def record(x, rate, key):
        seen.append((rate, key))
        return x

    for module in (bert, encoder):
        monkeypatch.setattr(module, "dropout", record)

    @jax.jit
    def keys():
        model(**batch, key=jax.random.key(0))
        return jnp.stack([jax.random.key_data(key) for _, key in seen])

    assert len(np.unique(keys(), axis=0)) == len(seen)
    # Embeddings, two projections a layer and the pooled token; attention weights a layer.
    assert Counter(rate for rate, _ in seen) == {0.125: 1 + 2 * 2, 0.25: 2, 0.5: 1}


def test_dropout_follows_its_key(write_folder, tensors, batch, evaluate):
    model = load_model(write_folder(tensors, num_hidden_layers=1))
    plain = evaluate(model, batch)
    first, again, other = (evaluate(model, batch, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, plain)


def test_a_new_model_is_drawn_from_its_key():
    config = BertConfig(16, 16, 1, 2, 16, 16, type_vocab_size=16, num_labels=16)
    one, same, other = (parameters(BertClassifier(config, jax.random.key(s))) for s in (0, 0, 1))
    drawn = [path for path, array in one.items() if array.ndim == 2]
    assert len(drawn) == 3 + 6 + 2
    for path in drawn:
        np.testing.assert_array_equal(one[path], same[path])
        assert not np.allclose(one[path], other[path]), path
        assert 0.015 < one[path].std() < 0.025, path
    # Weakly typed arrays would make a training loop compile its second step anew.
    assert {(a.dtype.name, a.weak_type) for a in one.values()} == {("float32", False)}
    assert len({one[path].tobytes() for path in drawn}) == len(drawn), "a key was used twice"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "not a BERT configuration.*hidden_size"),
        ({"hidden_act": "mish"}, "the activation 'mish' is not one of gelu, gelu_python"),
        ({"num_attention_heads": 5}, "not a multiple of num_attention_heads"),
        ({"position_embedding_type": "relative_key"}, "only absolute position embeddings"),
        ({"is_decoder": True}, "is_decoder"),
    ],
    ids=str,
)
def test_configs_of_other_models_are_refused(write_folder, tensors, changes, message):
    with pytest.raises(LpafError, match=message):
        load_model(write_folder(tensors, **changes))
