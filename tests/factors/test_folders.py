"""Folders of factors: what is written is read here and in PyTorch, in the old spelling as well."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.bench import find_pair
from lpaf_jax.evaluation.inspection import inspect_model
from lpaf_jax.export import export_dense, export_factorized
from lpaf_jax.factorization.spectra import weight_spectra
from lpaf_jax.factors import KINDS
from lpaf_jax.models import compressible_layers, parameters
from tests.factors.folders import (
    IDS,
    as_before,
    config_of,
    logits,
    twin_logits,
    with_config,
    write_low_rank,
)

READER = Path(__file__).with_name("reader.py")


def read_by_a_stranger(place: Path, *folders: Path) -> None:
    pytest.importorskip("torch")
    (place / "ids.json").write_text(json.dumps(IDS.tolist()))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    cache = str(place / "cache")
    kept |= {"HF_HOME": cache, "HF_MODULES_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-I", READER, place / "ids.json", *folders]
    done = subprocess.run(
        words, cwd=place, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def assert_read_everywhere(folders: dict[str, Path]) -> None:
    """Here, by the twin and by a stranger, as the model was that was written."""
    read_by_a_stranger(next(iter(folders.values())).parent, *folders.values())
    for folder in folders.values():
        expected = np.load(folder / "expected.npy")
        np.testing.assert_array_equal(logits(load_model(folder)), expected)
        np.testing.assert_allclose(twin_logits(folder), expected, atol=1e-4)
        assert_read(folder, expected)


def assert_same_when_dense(folders: dict[str, Path], place: Path) -> None:
    for family, folder in folders.items():
        export_dense(folder, place / family)
        assert "lpaf_factors" not in config_of(place / family)
        found = logits(load_model(place / family))
        np.testing.assert_allclose(found, np.load(folder / "expected.npy"), atol=1e-4)


def assert_encoder_read_everywhere(model: Any, words: int, folder: Path) -> None:
    """An encoder of so many tokens, saved in `folder`: the same here, and in PyTorch to 1e-5."""
    torch = pytest.importorskip("torch")
    from lpaf_jax.checkpoints.torch_twin import torch_twin

    ids = np.random.default_rng(0).integers(1, words, (2, 7))
    expected = np.asarray(model(jnp.asarray(ids)))
    np.testing.assert_array_equal(load_model(folder)(jnp.asarray(ids)), expected)
    with torch.no_grad():
        theirs = torch_twin(folder)(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(theirs, expected, atol=1e-5)


def assert_read(folder: Path, expected: np.ndarray) -> None:
    read = np.load(folder / "read.npz")
    np.testing.assert_allclose(read["logits"], expected, atol=1e-4)
    np.testing.assert_allclose(read["body"], read["hidden"], atol=1e-5)


def test_what_is_written_is_read_here_and_in_pytorch(low_rank: Path) -> None:
    records = config_of(low_rank)["lpaf_factors"]
    assert {record["kind"] for record in records.values()} == {"low_rank"}
    model = load_model(low_rank)
    ranks = {path: model_rank(model, path) for path in records}
    assert ranks == {path: record["rank"] for path, record in records.items()}
    assert 0 < len(records) < len(compressible_layers(parameters(model)))
    expected = logits(model)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(twin_logits(low_rank), expected, atol=1e-4)


def model_rank(model: Any, path: str) -> int:
    rank: int = parameters(model)[f"{path}.a"].shape[1]
    return rank


def test_ranks_by_path_are_read_as_they_were(low_rank: Path, tmp_path: Path) -> None:
    expected, told = logits(load_model(low_rank)), inspect_model(low_rank)
    before = as_before(low_rank)
    assert "lpaf_factors" not in config_of(before)
    np.testing.assert_array_equal(logits(load_model(before)), expected)
    np.testing.assert_allclose(twin_logits(before), expected, atol=1e-4)
    assert inspect_model(before)["matrices"] == told["matrices"]
    assert not inspect_model(before)["marks"]
    assert find_pair(before).compressed == before
    with pytest.raises(LpafError, match="is already factorized"):
        DecoderOnDisk(before)
    export_dense(before, tmp_path / "plain")
    assert not [key for key in config_of(tmp_path / "plain") if key.startswith("lpaf_")]
    np.testing.assert_allclose(logits(load_model(tmp_path / "plain")), expected, atol=1e-4)
    export_factorized(before, tmp_path / "half", dtype="bfloat16")
    half = config_of(tmp_path / "half")
    assert "lpaf_ranks" not in half
    assert len(half["lpaf_factors"]) == sum(m["kind"] is not None for m in told["matrices"])


def test_a_body_without_its_head_is_multiplied_back(tmp_path: Path) -> None:
    """`AutoModel` saves it by names that lack the prefix."""
    folder = write_low_rank(tmp_path, "gpt2")
    whole = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): x for name, x in whole.items()}
    expected = logits(load_model(folder))
    save_file(bare, folder / "model.safetensors")
    np.testing.assert_array_equal(logits(load_model(folder)), expected)
    export_dense(folder, tmp_path / "plain")
    assert not [n for n in load_file(tmp_path / "plain" / "model.safetensors") if ".up." in n]
    np.testing.assert_allclose(logits(load_model(tmp_path / "plain")), expected, atol=1e-4)


QUERY = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ({QUERY: {"kind": "wavelet"}}, [QUERY, "'wavelet'", "known kinds are low_rank"]),
        ({QUERY: {"rank": 3}}, [QUERY, "has no kind"]),
        ({QUERY: {"kind": ["low_rank"]}}, [QUERY, "has no kind"]),
        ({QUERY: 3}, [QUERY, "has no kind"]),
        ([QUERY], ["must name layers by their paths"]),
        ({QUERY: {"kind": "low_rank"}}, [QUERY, "low_rank", "has no rank"]),
        ({QUERY: {"kind": "low_rank", "rank": "3"}}, [QUERY, "has rank '3'", "whole number"]),
        ({QUERY: {"kind": "low_rank", "rank": True}}, [QUERY, "has rank True"]),
        ({QUERY: {"kind": "low_rank", "rank": 0}}, [QUERY, "has rank 0"]),
        ({"model.lost": {"kind": "low_rank", "rank": 3}}, ["model.lost", "no such layer"]),
        ({"model.norm": {"kind": "low_rank", "rank": 3}}, ["model.norm", "no such layer"]),
    ],
)
def test_bad_records_are_refused_by_all_that_reads_them(
    tmp_path: Path, records: Any, words: list[str]
) -> None:
    folder = with_config(write_low_rank(tmp_path, "llama"), lpaf_factors=records)
    for read in (load_model, inspect_model, lambda f: export_dense(f, tmp_path / "out")):
        with pytest.raises(LpafError) as error:
            read(folder)
        for word in (str(folder), *words):
            assert word in str(error.value)


def test_a_rank_in_the_old_spelling_that_is_none(tmp_path: Path) -> None:
    folder = as_before(write_low_rank(tmp_path, "llama"))
    with_config(folder, lpaf_ranks={QUERY: None})
    with pytest.raises(LpafError, match=rf"{QUERY}, of kind low_rank, has no rank"):
        load_model(folder)


def test_a_second_kind_is_all_that_a_new_file_says(
    tmp_path: Path, second_kind: Any, write_both: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {family: write_both(tmp_path, family) for family in ("gpt2", "llama")}
    read_by_a_stranger(tmp_path, *folders.values())
    for family, folder in folders.items():
        expected = np.load(folder / "expected.npy")
        assert np.abs(expected - logits(load_model(tmp_path / family))).max() > 0.01
        records = config_of(folder)["lpaf_factors"].values()
        assert {record["kind"] for record in records} == {"low_rank", "scaled"}
        np.testing.assert_array_equal(logits(load_model(folder)), expected)
        np.testing.assert_allclose(twin_logits(folder), expected, atol=1e-4)
        assert_read(folder, expected)
        code = (folder / "modeling_lpaf.py").read_text()
        assert 'KINDS = {"low_rank": low_rank, "scaled": scaled}' in code
        assert "scaled" not in (tmp_path / family / "modeling_lpaf.py").read_text()
        inspected(folder)
        plain = tmp_path / f"{family}_plain"
        export_dense(folder, plain)
        assert config_of(plain)["model_type"] == family
        np.testing.assert_allclose(logits(load_model(plain)), expected, atol=1e-4)
        products, factors = (weight_spectra(parameters(load_model(f))) for f in (plain, folder))
        for one, other in zip(products, factors, strict=True):
            assert one["name"] == other["name"]
            np.testing.assert_allclose(one["spectrum"], other["spectrum"], atol=2e-4)
        assert find_pair(folder).compressed == folder


def inspected(folder: Path) -> None:
    matrices = inspect_model(folder)["matrices"]
    names = load_file(folder / "model.safetensors")
    for matrix in matrices:
        own = [x for n, x in names.items() if f"{matrix['name']}." in n and not n.endswith("bias")]
        assert matrix["parameters"] == sum(x.size for x in own)
        assert matrix["bytes"] == sum(x.nbytes for x in own)
    kinds = [m["kind"] for m in matrices]
    assert {None, "low_rank", "scaled"} == set(kinds)
    for matrix in matrices:
        if matrix["kind"] == "scaled":
            m, n = matrix["shape"]
            assert (matrix["summary"], matrix["rank"]) == ("by rows", None)
            assert (matrix["parameters"], matrix["flop"]) == (m + m * n, m + 2 * m * n)
    assert main(["inspect", str(folder)]) == 0


def test_a_folder_of_a_kind_that_went_away(
    tmp_path: Path, write_both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_both(tmp_path, "llama")
    with monkeypatch.context() as patch:
        patch.delitem(KINDS._choices, "scaled")
        with pytest.raises(LpafError, match=r"the unknown kind 'scaled'; known kinds are"):
            load_model(folder)


def test_code_that_travels_refuses_a_kind_that_it_lacks(tmp_path: Path) -> None:
    folder = write_low_rank(tmp_path, "llama")
    records = {QUERY: {"kind": "wavelet"}}
    stranger = shutil.copytree(folder, tmp_path / "stranger")
    with_config(stranger, lpaf_factors=records)
    with pytest.raises(
        AssertionError, match=rf"{QUERY} has the kind 'wavelet'; this file supports only"
    ):
        read_by_a_stranger(tmp_path, stranger)
