"""Quantized checkpoints are refused: read as they lie, their codes would pass for weights."""

import json
from importlib.util import find_spec

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.checkpoints.torch_twin import torch_twin
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.bench import find_pair
from lpaf_jax.evaluation.inspection import inspect_model
from lpaf_jax.export import export_dense, export_factorized
from tests.tiny_decoder import write_decoder

TWIN = pytest.param(
    torch_twin, marks=pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")
)

EXPORTS = [
    lambda folder: export_dense(folder, folder / "out", dtype="bfloat16"),
    lambda folder: export_factorized(folder, folder / "out", dtype="bfloat16"),
]
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp("decoder") / "llama", "llama")


@pytest.fixture
def coded(source, tmp_path):
    """`coded(dtype, **more tensors) -> folder` with a matrix of that dtype."""

    def write(dtype, **more):
        tensors = load_file(source / "model.safetensors") | more
        tensors[QUERY] = (20 * tensors[QUERY]).astype(dtype)
        folder = tmp_path / "coded"
        folder.mkdir()
        (folder / "config.json").write_text((source / "config.json").read_text())
        save_file(tensors, folder / "model.safetensors")
        return folder

    return write


@pytest.mark.parametrize("read", [load_model, DecoderOnDisk, inspect_model, find_pair, *EXPORTS])
@pytest.mark.parametrize("field", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("method", ["bitsandbytes", None])
def test_a_config_that_says_so(coded, read, field, method):
    folder = coded(np.float32)
    values = json.loads((folder / "config.json").read_text())
    values[field] = {} if method is None else {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        LpafError, match=f"coded is quantized .{method or 'config.json'}.*original checkpoint"
    ):
        read(folder)
    (folder / "config.json").write_text(json.dumps({**values, field: None}))
    load_model(folder)


@pytest.mark.parametrize("read", [load_model, lambda folder: DecoderOnDisk(folder).block(1)])
@pytest.mark.parametrize(
    ("dtype", "name"), [(np.int8, "I8"), (ml_dtypes.float8_e4m3fn, "F8_E4M3"), (np.int32, "I32")]
)
def test_a_config_that_does_not(coded, read, dtype, name):
    with pytest.raises(LpafError, match=rf"tensor {QUERY} is stored as {name}, .* give a check"):
        read(coded(dtype))


@pytest.mark.parametrize("read", [load_model, DecoderOnDisk, inspect_model, TWIN, *EXPORTS])
@pytest.mark.parametrize(
    "name",
    [
        QUERY.replace("weight", "SCB"),  # bitsandbytes, 8 bits
        f"{QUERY}.quant_state.bitsandbytes__nf4",  # and 4
        f"{QUERY}_scale_inv",  # FP8 of DeepSeek
        f"{QUERY}_scale",  # compressed-tensors
        QUERY.replace("weight", "qzeros"),  # GPTQ and AWQ
        "model.layers.1.mlp.experts.gate_up_proj_blocks",  # MXFP4
        QUERY.replace("weight", "scales"),  # MLX
    ],
)
def test_scales_tell_of_codes_where_the_config_says_nothing(coded, tmp_path, read, name):
    folder = coded(np.float32, **{name: np.full(32, 0.05, np.float32)})
    with pytest.raises(
        LpafError, match=r"coded is quantized \(it holds .*original checkpoint"
    ) as caught:
        read(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("read", [inspect_model, TWIN, *EXPORTS])
def test_codes_are_refused_by_whoever_reads_them(coded, read):
    with pytest.raises(LpafError, match=rf"tensor {QUERY} is stored as F8_E4M3, .* give a check"):
        read(coded(ml_dtypes.float8_e4m3fn))


def test_what_is_not_wanted_may_be_of_any_kind(coded):
    load_model(coded(np.float32, steps=np.arange(3)))
