"""Quantized checkpoints are refused: read as they lie, their codes would pass for weights."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.errors import LpafError
from lpaf_jax.models import DecoderOnDisk, load_model
from tests.tiny_decoder import write_decoder

QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp("decoder") / "llama", "llama")


@pytest.fixture
def coded(source, tmp_path):
    """`coded(dtype) -> folder` with a matrix as 8-bit codes beside their scale."""

    def write(dtype):
        tensors = load_file(source / "model.safetensors")
        tensors[QUERY] = (20 * tensors[QUERY]).astype(dtype)
        tensors[QUERY.replace("weight", "SCB")] = np.full(32, 0.05, np.float32)
        folder = tmp_path / "coded"
        folder.mkdir()
        (folder / "config.json").write_text((source / "config.json").read_text())
        save_file(tensors, folder / "model.safetensors")
        return folder

    return write


@pytest.mark.parametrize("read", [load_model, DecoderOnDisk])
@pytest.mark.parametrize("method", ["bitsandbytes", None])
def test_a_config_that_says_so(coded, read, method):
    folder = coded(np.float32)
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = {} if method is None else {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        LpafError, match=f"coded is quantized .{method or 'config.json'}.*made from"
    ):
        read(folder)
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": None}))
    read(folder)


@pytest.mark.parametrize("read", [load_model, lambda folder: DecoderOnDisk(folder).block(1)])
@pytest.mark.parametrize(
    ("dtype", "name"), [(np.int8, "I8"), (ml_dtypes.float8_e4m3fn, "F8_E4M3"), (np.int32, "I32")]
)
def test_a_config_that_does_not(coded, read, dtype, name):
    with pytest.raises(LpafError, match=rf"tensor {QUERY} is stored as {name}, .* give a check"):
        read(coded(dtype))


def test_what_is_not_wanted_may_be_of_any_kind(coded):
    folder = coded(np.float32)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "steps": np.arange(3)}, folder / "model.safetensors")
    load_model(folder)
