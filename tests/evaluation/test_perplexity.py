"""`lpaf evaluate` of a language model, against a loop over the text in float64."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.checkpoints import load_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.perplexity import text_judge
from lpaf_jax.models import parameters
from tests.tiny_decoder import LENGTH, write_decoder, write_text


def text_perplexity(*words: Any, **chosen: Any) -> dict[str, Any]:
    judge = text_judge(*words, **chosen)
    return judge.score(parameters(judge.model))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("perplexity")
    write_decoder(folder / "gpt2", "gpt2")
    write_text(folder / "text.txt", 71, seed=3)
    return folder


def by_hand(place: Path, length: int, stride: int) -> tuple[float, int]:
    """Every token once, given what its window holds before it."""
    ids = np.array([int(word[1:]) for word in (place / "text.txt").read_text().split()])
    model, seen, lost = load_model(place / "gpt2"), 0, []
    for start in range(0, len(ids), stride):
        window = ids[start : start + length]
        if seen >= start + len(window):
            break
        logits = np.asarray(model(window[None]), np.float64)[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for place_in_text in range(max(seen, start + 1), start + len(window)):
            lost.append(-log_p[place_in_text - start - 1, ids[place_in_text]])
        seen = start + len(window)
    return float(np.exp(np.mean(lost))), len(lost)


@pytest.mark.parametrize(
    ("length", "stride", "batch"),
    [(LENGTH, LENGTH, 1), (LENGTH, 5, 1), (LENGTH, 5, 4), (9, 4, 100)],
)
def test_perplexity_is_that_of_every_token_once(
    place: Path, length: int, stride: int, batch: int
) -> None:
    chosen = {"length": length, "stride": stride, "batch": batch}
    done: list[tuple[int, int]] = []
    found = text_perplexity(
        place / "gpt2", place / "text.txt", **chosen, on_batch=lambda *told: done.append(told)
    )
    expected, tokens = by_hand(place, length, stride)
    assert found["tokens"] == tokens
    assert done == [(i + 1, len(done)) for i in range(len(done))]
    assert found["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_the_command_prints_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(place / "gpt2"), "--data", str(place / "text.txt")]
    assert main(words) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["perplexity"] == pytest.approx(by_hand(place, LENGTH, LENGTH)[0], rel=1e-4)
    assert (found["length"], found["stride"]) == (LENGTH, LENGTH)
    assert main([*words, "--stride", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity"] == pytest.approx(by_hand(place, LENGTH, 5)[0], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.txt",
            gzip.compress(b"w3 w4 w5", mtime=0),
            r"t\.txt is packed \(gzip\): unpack it first",
        ),
        ("t.json", b'{"data": [{"text": "w3 w4"}]}', r"t\.json is one JSON object"),
        ("t.csv", b"sentence\nw3 w4\n", "no column 'text'"),
    ],
)
def test_a_file_that_is_no_text_is_refused_before_the_model_is_read(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
    message: str,
) -> None:
    monkeypatch.setattr("lpaf_jax.evaluation.perplexity.load_model", None)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LpafError, match=message):
        text_perplexity(place / "gpt2", tmp_path / name)


def test_a_table_is_read_by_its_column(place: Path) -> None:
    lines = (place / "text.txt").read_text().split()
    (place / "t.csv").write_text("body,stars\n" + " ".join(lines) + ",4\n")
    found = text_perplexity(place / "gpt2", place / "t.csv", text_column="body")
    assert found == text_perplexity(place / "gpt2", place / "text.txt")


def test_what_cannot_be_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "short.txt").write_text("w1")
    with pytest.raises(LpafError, match=r"short\.txt has fewer than two tokens"):
        text_perplexity(place / "gpt2", place / "short.txt")
    words = ["evaluate", str(place / "gpt2"), "--data", str(place / "text.txt")]
    assert main([*words, "--length", "17"]) == 2
    assert "--length is 17, but the model reads at most 16 tokens" in capsys.readouterr().err
    assert main([*words, "--stride", "17"]) == 2
    assert "windows of 16 tokens with stride 17 are impossible" in capsys.readouterr().err


def scaled(source: Path, folder: Path, factor: float) -> Path:
    """The same model with larger embeddings, which are its head, too."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    [name] = (name for name in tensors if name.endswith("wte.weight"))
    save_file(tensors | {name: tensors[name] * np.float32(factor)}, folder / "model.safetensors")
    return folder


def test_a_perplexity_above_all_floats_is_null(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = scaled(place / "gpt2", tmp_path / "m", 1e4)
    assert main(["evaluate", str(folder), "--data", str(place / "text.txt")]) == 0
    said = capsys.readouterr().out
    assert json.loads(said, parse_constant=pytest.fail)["perplexity"] is None


def test_a_model_that_overflows_has_no_perplexity(place: Path, tmp_path: Path) -> None:
    folder = scaled(place / "gpt2", tmp_path / "m", 1e38)
    with pytest.raises(LpafError, match=r"m: the model's outputs on .*text\.txt are not finite"):
        text_perplexity(folder, place / "text.txt")


def test_a_token_beyond_the_table_is_refused_before_the_weights_are_read(
    place: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(place / "gpt2", tmp_path / "m")
    (folder / "added_tokens.json").write_text(json.dumps({"<user>": 50}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(LpafError, match=r"ids up to 50 \('<user>'\), .* 50 token embeddings"):
        text_perplexity(folder, place / "text.txt")
