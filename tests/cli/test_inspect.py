import io
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from lpaf_jax.cli import main
from lpaf_jax.report.inspection import print_inspection
from tests.tiny import ENCODER, HIDDEN, INNER, LAYERS, Tiny, write_model
from tests.tiny_decoder import write_decoder, write_text

Capture = pytest.CaptureFixture[str]
KINDS = ["query", "key", "value", "attn out", "ff in", "ff out"]


def inspect(capsys: Capture, *words: str | Path) -> dict[str, Any]:
    assert main(["inspect", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def told(capsys: Capture, run: Path) -> str:
    assert main(["inspect", str(run)]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_run_shows_rank_numbers_and_size_of_every_matrix(finished: Path, capsys: Capture) -> None:
    found = inspect(capsys, finished)
    metrics = json.loads((finished / "metrics.json").read_text())
    stored = load_file(finished / "model" / "model.safetensors")
    assert found["family"] == "bert"
    assert found["head"] == "classification"
    assert found["factorized"]
    assert len(found["matrices"]) == 6 * LAYERS
    for matrix in found["matrices"]:
        down = stored[f"bert.{matrix['name']}.down.weight"]
        up = stored[f"bert.{matrix['name']}.up.weight"]
        assert matrix["shape"] == [down.shape[1], up.shape[0]]
        assert matrix["rank"] == down.shape[0] == metrics["rank"]
        assert matrix["parameters"] == down.size + up.size
        assert matrix["bytes"] == down.nbytes + up.nbytes
    assert found["encoder_params_ratio"] == metrics["encoder_params_ratio"]
    assert found["total_params_ratio"] == metrics["total_params_ratio"]
    assert found["parameters"]["encoder_dense"] == metrics["params"]["dense"]["encoder"] == ENCODER
    assert found["parameters"]["total_dense"] == metrics["params"]["dense"]["total"]
    assert found["bytes_on_disk"] == metrics["bytes_on_disk"]["final"]
    assert sum(found["bytes"].values()) == sum(x.nbytes for x in stored.values())
    assert found["run"]["stage"] == "final"
    assert found["run"]["metric"] == "accuracy"
    assert found["run"]["scores"]["dense"] == metrics["stages"]["dense"]["accuracy"]


def test_the_table_is_in_words(finished: Path, capsys: Capture) -> None:
    assert main(["inspect", str(finished)]) == 0
    told = capsys.readouterr().out
    metrics = json.loads((finished / "metrics.json").read_text())
    rows = [line.split() for line in told.splitlines()]
    for kind in KINDS:
        cells = f"{kind} {INNER if kind == 'ff out' else HIDDEN}×"
        found = [row for row in rows if cells in " ".join(row)]
        assert len(found) == LAYERS, kind
        assert all(str(metrics["rank"]) in row for row in found)
    [compressible] = [row for row in rows if row[:1] == ["compressible"]]
    ratio = metrics["encoder_params_ratio"]  # of two thin factors FLOP are as numbers
    assert compressible[-2:] == [f"{100 * ratio:.0f}", "%"]
    assert any(row[:2] == ["whole", "model"] for row in rows)
    said = " ".join(told.split())
    share = f"{100 * metrics['encoder_params_ratio']:.1f} %"
    assert f"Weights kept: {share} of the compressible matrices (encoder_params_ratio)" in said
    assert "recipe lpaf" in said.lower()


def test_cut_channels_of_a_wide_layer_fit_in_eighty_columns(
    finished: Path, capsys: Capture
) -> None:
    found, screen = inspect(capsys, finished), io.StringIO()
    wide = {"shape": [4096, 14336], "kind": "sliced", "summary": "4096×10000"}
    sizes = {"parameters": 4096 * 14336, "dense_parameters": 4096 * 14336, "bytes": 10**8}
    found["matrices"][0] |= wide | sizes
    print_inspection(found, Console(file=screen, width=80))
    table = screen.getvalue()
    assert "…" not in table
    assert "4096×14336 4096×10000 58,720,256 100.0 % 100.0 MB" in table


@pytest.mark.parametrize(
    ("changed", "recipe"),
    [
        ({}, "lpaf, solver row, importance score, ranks uniform, seed 0"),
        ({"solver": "column"}, "lpaf, solver column, importance score, ranks uniform, seed 0"),
    ],
)
def test_what_weighed_the_matrices_is_told(
    finished: Path, tmp_path: Path, capsys: Capture, changed: dict[str, Any], recipe: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | changed))
    assert f"Recipe {recipe} " in told(capsys, run)


def test_a_regression_gives_a_number_and_is_judged_by_its_correlation(
    graded_run: Path, capsys: Capture
) -> None:
    stages = json.loads((graded_run / "metrics.json").read_text())["stages"]
    said = told(capsys, graded_run)
    assert "Gives a number (regression)" in said
    assert "Classes" not in said
    scores = ", ".join(f"{stage} {figures['pearson']:.3f}" for stage, figures in stages.items())
    assert f"Pearson correlation {scores}" in said


def test_a_model_of_spans_reads_windows_and_is_judged_by_f1(
    asked_run: Path, capsys: Capture
) -> None:
    stages = json.loads((asked_run / "metrics.json").read_text())["stages"]
    said = told(capsys, asked_run)
    assert "questions and contexts, in overlapping windows of 16 tokens (--doc-stride 128)" in said
    scores = ", ".join(f"{stage} {100 * figures['f1']:.1f} %" for stage, figures in stages.items())
    assert f"F1 {scores}" in said


def test_the_primary_metric_is_shown_where_there_is_accuracy_too(
    finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["metrics"] = ["mcc", "accuracy"]
    for figures in metrics["stages"].values():
        figures["mcc"] = 0.5
    (run / "metrics.json").write_text(json.dumps(metrics))
    found = inspect(capsys, run)["run"]
    assert (found["metric"], set(found["scores"].values())) == ("mcc", {0.5})


def test_a_dense_model_is_whole(finished: Path, tiny: Tiny, capsys: Capture) -> None:
    found = inspect(capsys, finished, "--stage", "dense")
    assert not found["factorized"]
    assert {matrix["rank"] for matrix in found["matrices"]} == {None}
    assert found["encoder_params_ratio"] == found["total_params_ratio"] == 1
    wide = next(m for m in found["matrices"] if m["name"].endswith("intermediate.dense"))
    assert wide["shape"] == [HIDDEN, INNER]
    alone = inspect(capsys, tiny.model)  # published without a head, its names without a prefix
    assert alone["run"] is None
    assert alone["head"] is None
    assert [m["name"] for m in alone["matrices"]] == [m["name"] for m in found["matrices"]]
    assert main(["inspect", str(tiny.model)]) == 0
    assert "Nothing is factorized" in capsys.readouterr().out


def test_only_headers_are_read(tmp_path: Path, capsys: Capture) -> None:
    """A matrix of 256 GB, in a file that takes a few blocks of the disk."""
    folder = write_model(tmp_path / "large")
    m, n = 2**18, 2**18
    name = "encoder.layer.0.attention.self.query.weight"
    entry = {name: {"dtype": "F32", "shape": [n, m], "data_offsets": [0, 4 * m * n]}}
    header = json.dumps(entry).encode()
    header += b" " * (-len(header) % 8)
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(file, 8 + len(header) + 4 * m * n)
    found = inspect(capsys, folder)
    assert found["parameters"]["total"] == m * n
    assert found["matrices"][0]["bytes"] == found["bytes_on_disk"] - 8 - len(header)


def test_tables_of_integers_are_no_parameters(tmp_path: Path, capsys: Capture) -> None:
    from safetensors.numpy import save_file

    folder = write_model(tmp_path / "old")
    before = inspect(capsys, folder)["parameters"]
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.position_ids"] = np.arange(32)[None]
    save_file(tensors, folder / "model.safetensors")
    assert inspect(capsys, folder)["parameters"] == before


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_compressed_without_training(
    tmp_path: Path, capsys: Capture, family: str
) -> None:
    source = write_decoder(tmp_path / "dense", family)
    text = write_text(tmp_path / "text.txt", 2000, 0)
    texts = ["--calibration", str(text), "--held-out", str(text)]
    flags = [*texts, "--recipe", "drone", "--params", "0.6", "--quiet"]
    words = ["compress", str(source), "--out", str(tmp_path / "run"), *flags]
    assert main([*words, "--samples", "8"]) == 0
    capsys.readouterr()
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    found = inspect(capsys, tmp_path / "run")
    assert found["family"] == family
    assert found["head"] == "lm"
    assert found["encoder_params_ratio"] == pytest.approx(record["encoder_params_ratio"])
    assert found["total_params_ratio"] == pytest.approx(record["total_params_ratio"])
    ranks = {
        cut["path"]: (cut["record"] and cut["record"]["rank"], cut["shape"])
        for cut in record["matrices"]
    }
    prefix = {"gpt2": "transformer", "llama": "model"}[family]
    for matrix in found["matrices"]:
        assert ranks[f"{prefix}.{matrix['name']}"] == (matrix["rank"], matrix["shape"])
    perplexities = {name: of["perplexity"] for name, of in record["stages"].items()}
    assert found["run"]["scores"] == perplexities
    assert main(["inspect", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "drone, solver metric, importance activations, ranks share" in told
    assert f"dense {perplexities['dense']:.2f}" in " ".join(told.split()) or "dense" in told
    dense = inspect(capsys, source)
    assert [m["shape"] for m in dense["matrices"]] == [m["shape"] for m in found["matrices"]]


def test_mistakes_are_one_clear_line(tmp_path: Path, capsys: Capture) -> None:
    folder = write_model(tmp_path / "cut")
    os.truncate(folder / "model.safetensors", 3000)
    for place, told in ((folder, "is damaged"), (tmp_path / "none", "does not exist")):
        assert main(["inspect", str(place)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("lpaf: error: ")
        assert told in said.err
        assert said.err.count("\n") == 1
