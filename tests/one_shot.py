"""A decoder with texts, and what both files of runs without a task do with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.cli import main
from lpaf_jax.runs import pipeline
from tests.tiny_decoder import LENGTH, write_decoder, write_text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, texts to calibrate with and to judge by, and a finished run."""
    folder = tmp_path_factory.mktemp("one-shot")
    write_decoder(folder / "llama", "llama")
    write_text(folder / "calibration.txt", 400, seed=1)
    write_text(folder / "held_out.txt", 100, seed=2)
    assert main(words(folder, "run")) == 0
    return folder


def words(folder: Path, out: str, **changed: Any) -> list[str]:
    chosen = {
        "calibration": folder / "calibration.txt",
        "held-out": folder / "held_out.txt",
        "samples": 6,
        "params": 0.6,
        "recipe": "drone",
        "out": folder / out,
    } | changed
    flags = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    return ["compress", str(folder / "llama"), *flags, "--quiet"]


def compress(folder: Path, out: str, **changed: Any) -> dict[str, Any]:
    chosen = {"samples": 6, "params": 0.6, "recipe": "drone", "quiet": True}
    given = {"calibration": folder / "calibration.txt"} | chosen | changed
    return pipeline.compress(folder / "llama", out=folder / out, **given)


def perplexity(folder: Path, file: Path) -> float:
    """Of the first 6 pieces of a text, by the model in `folder`."""
    ids = np.array([int(word[1:]) for word in file.read_text().split()], np.int32)
    ids = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)[:6]
    logits = np.asarray(load_model(folder)(ids), np.float64)[:, :-1]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(np.exp(-np.take_along_axis(log_p, ids[:, 1:, None], -1).mean()))
