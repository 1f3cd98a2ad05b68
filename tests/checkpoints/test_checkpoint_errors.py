"""Damaged and foreign folders end in one line that names the thing, not in a traceback."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.core.errors import LpafError

QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def assert_refused(folder, *parts):
    with pytest.raises(LpafError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert folder.name in message


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert_refused(folder, "config.json does not exist")


def test_config_that_is_not_json(folder):
    (folder / "config.json").write_text('{"model_type": "bert",')
    assert_refused(folder, "config.json cannot be read as JSON")


@pytest.mark.parametrize("kind", ["t5", None])
def test_other_model_types(write_folder, tensors, kind):
    folder = write_folder(tensors, model_type=kind)
    assert_refused(folder, f"model_type {kind!r} is not supported")


@pytest.mark.parametrize("content", ["[]", '"bert"', "null", "3"])
def test_config_that_is_no_object(folder, content):
    (folder / "config.json").write_text(content)
    assert_refused(folder, "config.json is not a JSON object")


def test_no_weights(write_folder):
    assert_refused(write_folder({}), "has no model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(folder, share):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert_refused(folder, "model.safetensors is damaged or cannot be read")


def test_a_pointer_where_the_weights_should_be(folder):
    """What a clone without git-lfs leaves."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n"
    (folder / "model.safetensors").write_text(pointer)
    assert_refused(folder, "model.safetensors is damaged or cannot be read")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [QUERY, "bert.embeddings.LayerNorm.bias", "classifier.weight"])
def test_weights_that_are_not_finite(write_folder, tensors, name, value):
    tensors[name].flat[-1] = value
    assert_refused(write_folder(tensors), name, "contains NaN or infinity")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (QUERY, (32, 31)),
        ("bert.encoder.layer.0.intermediate.dense.weight", (32, 48)),  # not transposed
        ("bert.embeddings.word_embeddings.weight", (60, 32)),
        ("bert.encoder.layer.0.output.LayerNorm.bias", (1, 32)),  # would broadcast
    ],
)
def test_wrong_shapes(write_folder, tensors, name, shape):
    tensors[name] = np.zeros(shape, np.float32)
    assert_refused(write_folder(tensors), name, str(shape), "does not fit config.json")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [("classifier.weight", (2, 32), (32, 3)), ("classifier.bias", (1, 3), (3,))],
)
def test_a_head_of_another_shape(write_folder, tensors, name, shape, expected):
    """It is there: to say that it is missing would send people looking for another file."""
    tensors[name] = np.zeros(shape, np.float32)
    assert_refused(write_folder(tensors), name, str(shape), str(expected), "does not fit config")


def test_missing_tensors_are_counted_and_named(write_folder, tensors):
    del tensors[QUERY]
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    folder = write_folder(tensors)
    assert_refused(folder, "2 tensors are missing", QUERY)


def test_a_missing_shard(write_folder, tensors):
    folder = write_folder({})
    save_file(tensors, folder / "a.safetensors")
    index = {"weight_map": {**dict.fromkeys(tensors, "a.safetensors"), QUERY: "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, "index.json names 2 files", "such as b.safetensors", "do not exist")


def test_ranks_of_a_layer_that_is_not_there(write_folder, tensors):
    path = "bert.encoder.layer.2.attention.self.query"
    folder = write_folder(tensors, model_type="lpaf_bert", lpaf_ranks={path: 4})
    assert_refused(folder, "has no such layer", path, "low_rank")


def test_ranks_without_factors(write_folder, tensors):
    path = QUERY.removesuffix(".weight")
    folder = write_folder(tensors, model_type="lpaf_bert", lpaf_ranks={path: 4})
    assert_refused(folder, "3 tensors are missing", f"{path}.down.weight")


def test_factors_of_another_rank(factorized, folder, tmp_path):
    out = tmp_path / "out"
    save_model(factorized, out, source=folder, label_names=["a", "b", "c"], card="")
    values = json.loads((out / "config.json").read_text())
    path = QUERY.removesuffix(".weight")
    values["lpaf_factors"][path]["rank"] += 1
    (out / "config.json").write_text(json.dumps(values))
    assert_refused(out, path, "does not fit config.json")
