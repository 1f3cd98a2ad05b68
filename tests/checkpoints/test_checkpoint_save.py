"""What is written can be read again bit by bit, and a failed write leaves the old folder whole."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.checkpoints import check_saved, load_extra, load_model, save_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.models import Linear, compressible_layers, layer_at, parameters, replace_layer
from tests.disk import room_for

LABELS = ["bad", "good", "other"]
QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def save(folder, tmp_path):
    """`save(model, **changes) -> folder written`."""

    def save(model, **changes):
        arguments = {"source": folder, "label_names": LABELS, "card": "# Card", **changes}
        save_model(model, tmp_path / "out", **arguments)
        return tmp_path / "out"

    return save


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def assert_same_parameters(one, other):
    one, other = parameters(one), parameters(other)
    assert set(one) == set(other)
    for path, array in one.items():
        np.testing.assert_array_equal(array, other[path], err_msg=path)
        assert array.dtype == other[path].dtype


def test_a_dense_model_comes_back_bit_by_bit(model, save):
    out = save(model)
    assert_same_parameters(load_model(out), model)
    assert config_of(out)["model_type"] == "bert"
    assert "lpaf_factors" not in config_of(out)


def test_the_file_holds_what_transformers_would_write(model, save, tensors):
    """safetensors stores the memory of an array: a transposed view would come out scrambled."""
    stored = load_file(save(model) / "model.safetensors")
    assert set(stored) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(stored[name], array, err_msg=name)


def test_files_have_the_mode_that_the_umask_gives(model, save):
    before = os.umask(0o027)
    try:
        out = save(model, extra={"score": np.ones(3)})
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in out.iterdir()}
    assert {"model.safetensors", "state.safetensors"} <= modes.keys()
    assert set(modes.values()) == {0o640}


def test_a_look_finds_what_is_damaged(model, save):
    out = save(model, extra={"score": np.ones(3)})
    check_saved(out)
    for name in ("state.safetensors", "model.safetensors"):
        whole = (out / name).read_bytes()
        for damaged in (b"garbage" * 9, whole[:-1], b""):
            (out / name).write_bytes(damaged)
            with pytest.raises(LpafError, match=f"{name} is damaged or cannot be read"):
                check_saved(out)
        (out / name).unlink()
    with pytest.raises(LpafError, match=r"has no model\.safetensors"):
        check_saved(out)


def test_a_factorized_model_comes_back_bit_by_bit(factorized, save):
    assert_same_parameters(load_model(save(factorized)), factorized)


def test_factors_are_stored_as_factors(factorized, save, model):
    out = save(factorized)
    stored = load_file(out / "model.safetensors")
    layers = compressible_layers(parameters(factorized))
    ranks = {path: layer_at(factorized, path).a.shape[1] for path in layers}
    records = {path: {"kind": "low_rank", "rank": rank} for path, rank in ranks.items()}
    assert config_of(out)["lpaf_factors"] == records
    for path in layers:
        layer = layer_at(factorized, path)
        np.testing.assert_array_equal(stored[f"{path}.down.weight"], np.asarray(layer.a[...]).T)
        np.testing.assert_array_equal(stored[f"{path}.up.weight"], np.asarray(layer.b[...]).T)
        np.testing.assert_array_equal(stored[f"{path}.up.bias"], layer.bias[...])
        assert f"{path}.weight" not in stored
    smaller = (out / "model.safetensors").stat().st_size
    dense = (save(model) / "model.safetensors").stat().st_size
    saved = sum(a.size for a in parameters(model).values()) - sum(a.size for a in stored.values())
    assert saved > 5000
    # All that remains is the header, which names more tensors now.
    assert dense - smaller == pytest.approx(4 * saved, abs=2000)


def test_no_tool_takes_factors_for_a_bert(factorized, save):
    from transformers import AutoConfig

    out = save(factorized)
    assert config_of(out)["model_type"] == "lpaf_bert"
    assert config_of(out)["architectures"] == ["LpafBertForSequenceClassification"]
    with pytest.raises(ValueError, match="pass the argument `trust_remote_code=True`"):
        AutoConfig.from_pretrained(out, trust_remote_code=False)


def test_a_model_factorized_in_part(model, factorized, save):
    replace_layer(model, QUERY, layer_at(factorized, QUERY))
    out = save(model)
    assert list(config_of(out)["lpaf_factors"]) == [QUERY]
    assert_same_parameters(load_model(out), model)


def test_a_model_made_dense_again_is_a_bert_again(factorized, save, tmp_path):
    """The config of the source speaks of ranks that no longer hold."""
    source = save(factorized).rename(tmp_path / "factors")
    model = load_model(source)
    for path in compressible_layers(parameters(model)):
        layer = layer_at(model, path)
        replace_layer(model, path, Linear(layer.a[...] @ layer.b[...], layer.bias[...]))
    out = save(model, source=source)
    assert config_of(out)["model_type"] == "bert"
    assert not {"auto_map", "lpaf_factors"} & set(config_of(out))
    assert not (out / "modeling_lpaf.py").exists()
    assert_same_parameters(load_model(out), model)


def test_config_card_and_tokenizer_go_along(model, save, folder):
    beside = ["added_tokens.json", "chat_template.jinja", "generation_config.json"]
    for name in ("tokenizer.json", "vocab.txt", *beside):
        (folder / name).write_text(f"the {name}")
    (folder / "pytorch_model.bin").write_text("not ours to carry")
    values = {**config_of(folder), "_name_or_path": "somewhere", "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(values))
    out = save(model, label_names=["α", "β", "γ"], card="# Größe")
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
    ]
    assert (out / "vocab.txt").read_text() == "the vocab.txt"
    assert (out / "README.md").read_text(encoding="utf-8") == "# Größe"
    config = config_of(out)
    assert config["id2label"] == {"0": "α", "1": "β", "2": "γ"}
    assert config["label2id"] == {"α": 0, "β": 1, "γ": 2}
    # Where it came from and how it was stored there holds no longer.
    assert not {"_name_or_path", "dtype"} & set(config)


def test_extra_arrays_come_back(model, save):
    scores = np.arange(12, dtype=np.float32).reshape(3, 4)
    extra = {"scores": scores.T, "kept": scores[:, ::2] > 3, "step": jnp.asarray(7)}
    again = load_extra(save(model, extra=extra))
    assert set(again) == set(extra)
    for name, array in extra.items():
        np.testing.assert_array_equal(again[name], array)
    assert load_extra(save(model)) == {}


def test_a_folder_may_be_its_own_source(model, folder):
    save_model(model, folder, source=folder, label_names=LABELS, card="")
    assert_same_parameters(load_model(folder), model)


# Some files are written whole before the weights fail.
ROOM = 20_000


def test_a_full_disk_is_one_clear_error(model, save, tmp_path):
    with (
        room_for(ROOM),
        pytest.raises(LpafError, match=r"cannot write .*out: .*too large"),
    ):
        save(model)
    assert not list(tmp_path.glob("*out*"))


def test_a_failed_save_leaves_the_model_that_stood_there(model, save, tmp_path):
    out = save(model)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with room_for(ROOM), pytest.raises(LpafError, match="cannot write"):
        save(model, card="another")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert os.listdir(tmp_path).count("out") == len(list(tmp_path.glob("*out*")))


def test_as_many_label_names_as_classes(model, folder, tmp_path):
    with pytest.raises(ValueError, match="2 label names for a head of 3 classes"):
        save_model(model, tmp_path / "out", source=folder, label_names=LABELS[:2], card="")
