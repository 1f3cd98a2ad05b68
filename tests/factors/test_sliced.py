"""Decoders of fewer feed-forward channels: read here and in PyTorch, and as dense ones."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.inspection import inspect_model
from lpaf_jax.factors import SLICED, Heads, SlicedLinear
from lpaf_jax.models import layer_at, replace_layer
from tests.factors.folders import FAMILIES, config_of, logits, with_config
from tests.factors.test_folders import assert_read_everywhere, assert_same_when_dense
from tests.tiny_decoder import write_decoder

# (into, out of) the channels of a block, and how many of them each block keeps.
FEED_FORWARD: dict[str, tuple[list[str], str]] = {
    "gpt2": (["mlp.c_fc"], "mlp.c_proj"),
    "llama": (["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj"),
}
# Of the values of each head, where they have a matrix of their own; two queries share a value.
VALUES = ((3, 1), (8, 0))
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}
BIASES = {"llama": {"attention_bias": True}}
KEPT = (11, 29)


def write_sliced(place: Path, family: str) -> Path:
    source = write_decoder(place / family, family, **BIASES.get(family, {}))
    model, random = load_model(source, head="lm"), np.random.default_rng(0)
    into, out = FEED_FORWARD[family]
    for index, count in enumerate(KEPT):
        prefix = f"{BLOCKS[family]}.{index}"
        inner = layer_at(model, f"{prefix}.{out}").kernel.shape[0]
        chosen = np.sort(random.choice(inner, count, replace=False))
        for path in (f"{prefix}.{name}" for name in into):
            layer = layer_at(model, path)
            bias = None if layer.bias is None else layer.bias[...][chosen]
            replace_layer(model, path, SlicedLinear(layer.kernel[...][:, chosen], bias))
        layer = layer_at(model, f"{prefix}.{out}")
        bias = None if layer.bias is None else layer.bias[...]
        replace_layer(model, f"{prefix}.{out}", SlicedLinear(layer.kernel[...][chosen], bias))
        if family == "llama":
            slice_values(model, f"{prefix}.self_attn", VALUES[index])
    folder = place / f"{family}_sliced"
    save_model(model, folder, source=source, label_names=None, card="# sliced\n")
    np.save(folder / "expected.npy", logits(model))
    return folder


def slice_values(model: Any, path: str, left: tuple[int, ...]) -> None:
    given, taken = Heads("outputs", 8, left), Heads("inputs", 8, tuple(np.repeat(left, 2).tolist()))
    into, out = (layer_at(model, f"{path}.{name}_proj") for name in "vo")
    kernel, bias = into.kernel[...][:, given.places], into.bias[...][given.places]
    replace_layer(model, f"{path}.v_proj", SlicedLinear(kernel, bias, given))
    kernel = out.kernel[...][taken.places]
    replace_layer(model, f"{path}.o_proj", SlicedLinear(kernel, out.bias[...], taken))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sliced")
    return {family: write_sliced(place, family) for family in FAMILIES}


def test_what_is_written_is_read_here_and_in_pytorch(folders: dict[str, Path]) -> None:
    assert_read_everywhere(folders)
    for family, folder in folders.items():
        records = config_of(folder)["lpaf_factors"]
        hidden, out = 32, f"{BLOCKS[family]}.1.{FEED_FORWARD[family][1]}"
        assert records[out] == {"kind": "sliced", "inputs": 29, "outputs": hidden}
    values = config_of(folders["llama"])["lpaf_factors"]["model.layers.0.self_attn.o_proj"]
    heads = {"side": "inputs", "width": 8, "left": [3, 3, 1, 1]}
    assert values == {"kind": "sliced", "inputs": 8, "outputs": 32, "heads": heads}


def test_dense_it_is_the_same_model(folders: dict[str, Path], tmp_path: Path) -> None:
    assert_same_when_dense(folders, tmp_path)


def test_inspect_counts_what_is_left(folders: dict[str, Path]) -> None:
    for family, folder in folders.items():
        matrices = {each["name"]: each for each in inspect_model(folder)["matrices"]}
        out = matrices[f"{BLOCKS[family].partition('.')[2]}.0.{FEED_FORWARD[family][1]}"]
        assert (out["parameters"], out["flop"], out["summary"]) == (11 * 32, 2 * 11 * 32, "11×32")
        assert out["dense_parameters"] == np.prod(out["shape"]) > 11 * 32


@pytest.mark.parametrize("inputs", [0, 49, "many", None, True])
def test_a_record_that_does_not_fit(inputs: Any) -> None:
    record = {"kind": "sliced", "inputs": inputs, "outputs": 32}
    with pytest.raises(ValueError, match=r"inputs, which must be a number from 1 to 48"):
        SLICED.shapes(record, (48, 32))


@pytest.mark.parametrize(
    "changed",
    [
        {"left": [3, 2]},
        {"left": [9, 1]},
        {"left": [2, 1, 1]},
        {"left": [True, 3]},
        {"left": None},
        {"side": "both"},
        {"width": 4},
        {"width": 0},
    ],
)
def test_heads_that_do_not_fit(changed: dict[str, Any]) -> None:
    heads = {"side": "outputs", "width": 8, "left": [3, 1]}
    record = {"kind": "sliced", "inputs": 32, "outputs": 4, "heads": heads}
    assert SLICED.shapes(record, (32, 16)) == {"w": (32, 4)}
    with pytest.raises(ValueError, match=r"has heads .*, which are not those of \[32, 4\] of"):
        SLICED.shapes(record | {"heads": heads | changed}, (32, 16))


def test_tensors_of_another_size_than_recorded(tmp_path: Path) -> None:
    folder = write_sliced(tmp_path, "llama")
    records = config_of(folder)["lpaf_factors"]
    out = "model.layers.0.mlp.down_proj"
    with_config(folder, lpaf_factors=records | {out: SLICED.of_shape(12, 32)})
    with pytest.raises(LpafError, match=r"down_proj.weight has shape \(32, 11\), which does not"):
        load_model(folder)


def test_an_empty_layer_has_the_shapes_of_a_full_one() -> None:
    record = SLICED.of_shape(3, 4)
    empty: Any = SLICED.empty(record, (5, 7), bias=True)
    full = SLICED.layer({"w": jnp.ones((3, 4))}, jnp.ones(4), record)
    assert (empty.w.shape, empty.bias.shape) == ((3, 4), (4,))
    assert SLICED.record(full) == record
    assert full(jnp.ones((2, 3))).shape == (2, 4)
