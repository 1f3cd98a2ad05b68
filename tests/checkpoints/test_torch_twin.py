"""The PyTorch model that is timed and exported says what this library says, or is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.checkpoints import load_model
from lpaf_jax.checkpoints.torch_twin import torch_twin
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from tests.decoders import GPT2, LLAMA, both
from tests.tiny_decoder import VOCABULARY, narrow, write_decoder

torch = pytest.importorskip("torch")

IDS = np.random.default_rng(0).integers(1, VOCABULARY, (2, 7))


def logits(twin: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = twin(torch.tensor(ids)).logits.numpy()
    return found


def classifier(folder: Path, **fields: Any) -> Path:
    both(folder, "GPT2ForSequenceClassification", **GPT2, num_labels=3, **fields)
    return folder


def without(folder: Path, name: str) -> Path:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_weights_in_bfloat16(tmp_path: Path) -> None:
    folder = narrow(write_decoder(tmp_path / "m", "llama"))
    expected = np.asarray(load_model(folder)(IDS))
    twin = torch_twin(folder)
    assert {p.dtype for p in twin.parameters()} == {torch.float32}
    np.testing.assert_allclose(logits(twin, IDS), expected, atol=1e-4)


def test_a_classifier_that_cannot_tell_padding_is_only_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = classifier(tmp_path / "m")
    with pytest.raises(LpafError, match="needs pad_token_id .* set it in config.json"):
        torch_twin(folder)
    assert logits(torch_twin(folder, timed=True), IDS).shape == (2, 3)
    monkeypatch.setattr("lpaf_jax.export.onnx.find_spec", lambda name: name)
    out = tmp_path / "out"
    assert main(["export", str(folder), "--format", "onnx", "--out", str(out)]) == 2
    assert "set it in config.json" in capsys.readouterr().err
    assert not out.exists()

    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"pad_token_id": 50}))
    ended = np.where(np.arange(7) < 5, IDS, 50)
    ended[0, 4] = 0  # which is a word here
    expected = np.asarray(load_model(folder)(ended))
    np.testing.assert_allclose(logits(torch_twin(folder), ended), expected, atol=1e-4)


def test_a_missing_head_is_drawn_only_to_be_timed(tmp_path: Path) -> None:
    folder = without(classifier(tmp_path / "m", pad_token_id=0), "score.weight")
    with pytest.raises(LpafError, match=r"no classification head: score\.weight is missing"):
        torch_twin(folder)
    assert logits(torch_twin(folder, timed=True), IDS).shape == (2, 3)
    without(folder, "transformer.ln_f.bias")
    with pytest.raises(LpafError, match=r"1 tensors are missing, such as transformer\.ln_f\.bias"):
        torch_twin(folder)
    with pytest.raises(LpafError, match=r"1 tensors are missing, such as transformer\.ln_f\.bias"):
        torch_twin(folder, timed=True)


def test_a_head_of_words_that_is_not_tied_may_not_be_missing(tmp_path: Path) -> None:
    both(tmp_path / "m", "LlamaForCausalLM", **LLAMA, tie_word_embeddings=False)
    with pytest.raises(LpafError, match=r"no lm head: lm_head\.weight is missing"):
        torch_twin(without(tmp_path / "m", "lm_head.weight"))
