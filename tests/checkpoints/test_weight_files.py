"""Folders whose weights are not all there, or in another form: the line says what to do."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lpaf_jax.checkpoints import load_model
from lpaf_jax.checkpoints.weight_files import weight_files
from lpaf_jax.core.errors import LpafError

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture
def sharded(write_folder, tensors):
    folder, names = write_folder({}), list(tensors)
    index = {}
    for i, file in enumerate(SHARDS):
        save_file({name: tensors[name] for name in names[i::3]}, folder / file)
        index |= dict.fromkeys(names[i::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def refused(folder, *parts):
    with pytest.raises(LpafError) as caught:
        weight_files(folder)
    for part in parts:
        assert part in str(caught.value)


def test_a_shard_is_missing(sharded):
    load_model(sharded)
    (sharded / SHARDS[1]).unlink()
    refused(sharded, "of which 1 do not exist", SHARDS[1], "copy the whole folder again")


def test_an_index_of_other_shards(sharded):
    """Of a repository that was sharded anew: the old index names thirty files."""
    index = {f"t{i}": f"model-{i:05d}-of-00030.safetensors" for i in range(1, 31)}
    file = sharded / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": index}))
    refused(sharded, "names 30 files, of which 30 do not exist", f"there are {SHARDS[0]}")


def test_the_index_is_missing(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    refused(sharded, SHARDS[0], "model.safetensors.index.json is missing")


@pytest.mark.parametrize("value", [3, None, "../elsewhere.safetensors", "/weights.safetensors"])
def test_an_index_that_names_no_files(sharded, value):
    file = sharded / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {"a": value}}))
    refused(sharded, "index.json is damaged", repr(value))


@pytest.mark.parametrize("content", [[], {}, {"weight_map": {}}, {"weight_map": ["a"]}])
def test_an_index_without_a_map(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(content))
    refused(sharded, "is damaged: it has no weight_map")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("llama-3.2-1b.Q4_K_M.gguf", "llama.cpp"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("consolidated.safetensors", "the original release"),
        ("consolidated.00.pth", "the original release"),
        ("adapter_model.safetensors", "is an adapter: merge it"),
        ("last.ckpt", "is a training checkpoint"),
        ("weights.safetensors", "rename it"),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json is missing"),
    ],
)
def test_weights_in_another_form_are_named(write_folder, name, told):
    folder = write_folder({})
    (folder / name).write_bytes(b"")
    refused(folder, "has no model.safetensors", name, told)


def test_what_training_leaves_is_not_taken_for_weights(write_folder):
    folder = write_folder({})
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"")
    with pytest.raises(LpafError, match=r"has no model\.safetensors$"):
        weight_files(folder)


def test_pointers_of_git_lfs(sharded):
    (sharded / SHARDS[2]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(sharded, SHARDS[2], "git lfs pull")


def test_an_empty_tensor_is_read(write_folder, tensors):
    """Of no rows: a piece of it is none."""
    load_model(write_folder(tensors | {"cls.nothing": np.zeros((0, 3), np.float32)}))
