"""What config.json says in other words, read as transformers reads it."""

import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.models.configs import plain_values
from lpaf_jax.models.distilbert import DistilBertConfig
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.models.gpt2 import Gpt2Config

NAMES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 4,
    "max_position_embeddings": 8,
    "dim": 32,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dim": 4,
}


@pytest.mark.parametrize("more", [{}, {"n_embd": 64, "n_layer": 5}], ids=["alone", "beside own"])
def test_other_names_of_gpt2(more):
    transformers = pytest.importorskip("transformers")
    values = {**NAMES, "max_position_embeddings": 20, **more}
    ours, theirs = Gpt2Config.from_json(values), transformers.GPT2Config.from_dict(values)
    for name in ("n_embd", "n_head", "n_layer", "n_positions"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.n_embd, ours.n_head, ours.n_layer, ours.n_positions) == (32, 4, 3, 20)


@pytest.mark.parametrize("more", [{}, {"dim": 64, "n_layers": 5}], ids=["alone", "beside own"])
def test_other_names_of_distilbert(more):
    transformers = pytest.importorskip("transformers")
    values = {**NAMES, "vocab_size": 61, "hidden_dim": 48, "max_position_embeddings": 20, **more}
    ours = DistilBertConfig.from_json(values)
    theirs = transformers.DistilBertConfig.from_dict(values)
    for name in ("dim", "n_heads", "n_layers", "max_position_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.dim, ours.n_heads, ours.n_layers, ours.max_position_embeddings) == (32, 4, 3, 20)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({}, 2),
        ({"id2label": None}, 2),
        ({"id2label": None, "num_labels": 4}, 4),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": None}, 3),
        ({"num_labels": 4}, 4),
    ],
    ids=str,
)
def test_number_of_labels(family, fields, labels):
    values = {**SHAPE, "model_type": family, **fields}
    assert FAMILIES[family].config(values).num_labels == labels


def test_what_was_parsed_stays_as_it_was():
    values = {"hidden_size": 4, "num_labels": None, "id2label": {"0": "a"}}
    plain_values(values, {"hidden_size": "dim"})
    assert values == {"hidden_size": 4, "num_labels": None, "id2label": {"0": "a"}}


def test_a_folder_whose_labels_are_null(write_folder, tensors):
    tensors["classifier.weight"] = tensors["classifier.weight"][:2]
    tensors["classifier.bias"] = tensors["classifier.bias"][:2]
    folder = write_folder(tensors)
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"id2label": {', '"id2label": null, "other": {'))
    assert load_model(folder).num_labels == 2
