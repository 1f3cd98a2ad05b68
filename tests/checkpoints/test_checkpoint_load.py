"""Folders as they are found: names, prefixes, shards, storage types, heads."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.models import parameters

KERNELS = (".query", ".key", ".value", ".dense", "classifier")


def expected_path(name: str) -> str:
    """Where the tensor `name` of a classification checkpoint belongs in the model."""
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.kernel" if leaf == "weight" and parent.endswith(KERNELS) else name


def assert_holds(model, tensors):
    params = parameters(model)
    assert set(params) == {expected_path(name) for name in tensors}
    for name, array in tensors.items():
        path = expected_path(name)
        wanted = array.T if path.endswith(".kernel") else array
        np.testing.assert_array_equal(params[path], wanted, err_msg=name)
        assert params[path].dtype == np.float32


def test_every_tensor_lands_in_its_place_and_kernels_are_transposed(folder, tensors):
    assert_holds(load_model(folder), tensors)


def test_the_prefix_of_the_encoder_may_be_missing(write_folder, tensors):
    """As in a folder saved from `BertModel`, which all-MiniLM-L6-v2 is."""
    bare = {name.removeprefix("bert."): array for name, array in tensors.items()}
    assert_holds(load_model(write_folder(bare)), tensors)


def test_a_pooler_is_drawn_with_the_head_it_serves(write_folder, tensors):
    """Folders saved from `BertForMaskedLM` have no pooler."""
    bare = {k: v for k, v in tensors.items() if not k.startswith(("bert.pooler", "classifier"))}
    folder = write_folder(bare)
    with pytest.raises(LpafError, match="no classification head: bert.pooler.dense.bias"):
        load_model(folder)
    params = parameters(load_model(folder, num_labels=3))
    assert 0.015 < params["bert.pooler.dense.kernel"].std() < 0.025
    name = "bert.encoder.layer.1.output.dense"
    np.testing.assert_array_equal(params[f"{name}.kernel"], tensors[f"{name}.weight"].T)


def test_norms_may_be_called_gamma_and_beta(write_folder, tensors):
    """As in the first BERT checkpoints, converted from TensorFlow."""
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in tensors.items()
    }
    assert sum("gamma" in name or "beta" in name for name in old) == 2 * (1 + 2 * 2)
    assert_holds(load_model(write_folder(old)), tensors)


def test_tensors_of_other_heads_are_left_out(write_folder, tensors):
    more = {
        **tensors,
        "bert.embeddings.position_ids": np.arange(20)[None],
        "cls.predictions.bias": np.full(61, np.nan, np.float32),
        "cls.seq_relationship.weight": np.ones((2, 32), np.float32),
    }
    assert_holds(load_model(write_folder(more)), tensors)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_storage_types_are_read_as_float32(write_folder, tensors, kind):
    stored = {name: array.astype(kind) for name, array in tensors.items()}
    model = load_model(write_folder(stored))
    assert_holds(model, {name: array.astype(np.float32) for name, array in stored.items()})


def test_shards_are_read_by_their_index(write_folder, tensors):
    folder = write_folder({})
    names = sorted(tensors)
    shards = {
        "model-00001-of-00003.safetensors": names[:5],
        "model-00002-of-00003.safetensors": names[5:20],
        "model-00003-of-00003.safetensors": names[20:],
    }
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    # A leftover that the index does not list: reading all *.safetensors would take it for weights.
    save_file({"classifier.bias": np.full(3, 9, np.float32)}, folder / "zz.safetensors")
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_holds(load_model(folder), tensors)


def test_a_head_for_other_classes_is_drawn_anew(folder, tensors):
    params = parameters(load_model(folder, num_labels=5, seed=1))
    assert params["classifier.kernel"].shape == (32, 5)
    assert params["classifier.bias"].shape == (5,)
    assert 0.01 < params["classifier.kernel"].std() < 0.03
    np.testing.assert_array_equal(
        params["bert.pooler.dense.kernel"], tensors["bert.pooler.dense.weight"].T
    )


def test_a_missing_head_is_drawn_from_the_seed(write_folder, tensors):
    headless = write_folder(
        {name: array for name, array in tensors.items() if not name.startswith("classifier.")}
    )
    one, same, other = (
        parameters(load_model(headless, num_labels=3, seed=seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one["classifier.kernel"], same["classifier.kernel"])
    assert not np.allclose(one["classifier.kernel"], other["classifier.kernel"])
    for path in set(one) - {"classifier.kernel"}:
        np.testing.assert_array_equal(one[path], other[path])


def test_a_head_that_fits_is_kept(folder, tensors):
    assert_holds(load_model(folder, num_labels=3, seed=1), tensors)
