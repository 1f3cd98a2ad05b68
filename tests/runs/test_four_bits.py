"""Runs that are asked what their models are worth in four bits."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.cli import main
from lpaf_jax.core.files import read_json
from lpaf_jax.linalg.nf4 import TABLE
from lpaf_jax.runs import pipeline, text_decoder
from tests.one_shot import perplexity
from tests.tiny import Tiny
from tests.tiny_decoder import write_decoder, write_text

PARTS = ("attn", "mlp")


def rounded(w: np.ndarray) -> np.ndarray:
    """By the nearest value of the table, blocks scaled by their largest: scales not rounded."""
    w = w.astype(np.float64)
    flat = np.pad(w.reshape(-1), (0, -w.size % 64)).reshape(-1, 64)
    scale = np.abs(flat).max(axis=1, keepdims=True)
    codes = np.abs(flat[..., None] / scale[..., None] - TABLE).argmin(axis=-1)
    return (TABLE[codes] * scale).reshape(-1)[: w.size].reshape(w.shape)


def by_hand(folder: Path, copy: Path, text: Path) -> float:
    """The perplexity of a folder whose matrices were rounded outside of the program."""
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    for name, x in tensors.items():
        if x.ndim == 2 and any(part in name for part in PARTS):
            turned = rounded(x.T).T  # blocks of 64 lie along the rows of (m, n)
            tensors[name] = np.ascontiguousarray(turned).astype(np.float32)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return perplexity(copy, text)


def test_a_decoder_by_a_text(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "llama", "llama")
    calibration, text = (write_text(tmp_path / f"{i}.txt", 320, seed=i) for i in range(2))
    chosen: dict[str, Any] = {"recipe": "drone", "params": 0.5, "samples": 6, "quiet": True}
    found = pipeline.compress(
        model, out=tmp_path / "run", calibration=calibration, held_out=text, nf4=True, **chosen
    )
    final = tmp_path / "run" / "model"
    for end, folder in (("dense", model), ("final", final)):
        told = found["nf4"][end]
        expected = by_hand(folder, tmp_path / f"rounded-{end}", text)
        plain = found["stages"][end]["perplexity"]
        assert told["score"] != pytest.approx(plain, rel=1e-4)
        # Scales in eight bits make the difference.
        assert told["score"] == pytest.approx(expected, rel=5e-3)
        tensors = load_file(folder / "model.safetensors")
        sizes = [x.size for n, x in tensors.items() if x.ndim == 2 and any(p in n for p in PARTS)]
        blocks = [math.ceil(size / 64) for size in sizes]
        less = 4 * sum(sizes) - sum(size / 2 for size in sizes)
        less -= sum(n + 4 * math.ceil(n / 256) + 4 for n in blocks)
        assert found["bytes_on_disk"][end] - told["bytes"] == less
    page = (tmp_path / "run" / "report.html").read_text()
    assert "With the matrices rounded to four bits (NF4), perplexity is" in page


def test_what_was_tuned_is_not_tuned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run ends before its figures are written."""
    model = write_decoder(tmp_path / "llama", "llama")
    text = write_text(tmp_path / "text.txt", 320, seed=0)
    chosen: dict[str, Any] = {"recipe": "drone", "params": 0.5, "samples": 4, "quiet": True}
    chosen |= {"calibration": text, "tune_epochs": 1.0, "batch": 4, "nf4": True}

    def refuse(*_: Any) -> Any:
        raise RuntimeError("the machine went down")

    with monkeypatch.context() as patch:
        patch.setattr(text_decoder.Decoder, "in_nf4", refuse)
        with pytest.raises(RuntimeError, match="went down"):
            pipeline.compress(model, out=tmp_path / "run", **chosen)
    tuned = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(text_decoder, "run_stage", refuse)
    found = pipeline.compress(model, out=tmp_path / "run", **chosen)
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == tuned
    assert found["seconds"]["final"] > 0
    assert found["nf4"]["final"]["score"] > 1


@pytest.mark.slow
def test_a_task_and_a_comparison(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", str(tiny.model), "--task", str(tiny.data), "--recipes", "svd"]
    words += ["--out", str(tmp_path / "out"), "--finetune-epochs", "2", "--length", "16"]
    words += ["--batch", "8", "--params", "0.5", "--nf4"]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    (row,) = read_json(tmp_path / "out" / "compare.json")["rows"]
    for end in ("dense", "final"):
        assert 0 <= row["nf4"][end]["score"] <= 1
    assert row["nf4"]["final"]["bytes"] < row["nf4"]["dense"]["bytes"] < row["bytes_dense"]
    assert "Rounded to four bits (NF4) and otherwise unchanged, the dense model has" in said
    assert "Accuracy in NF4" in (tmp_path / "out" / "compare.html").read_text()
    report = tmp_path / "out" / "runs" / "svd-0.5-0" / "report.html"
    assert "rounded to four bits" in report.read_text()
