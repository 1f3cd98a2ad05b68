"""Parity with the PyTorch BERT of transformers: its MiniLM here, our folders there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model, save_model

torch = pytest.importorskip("torch")


def read_by_transformers(folder: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import BertForSequenceClassification

    model, info = BertForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    return model.eval(), info


def torch_logits(model: Any, batch: dict[str, Any]) -> np.ndarray:
    inputs = {name: torch.tensor(np.asarray(array)).long() for name, array in batch.items()}
    with torch.no_grad():
        return model(**inputs).logits.numpy()


def test_minilm(minilm, minilm_folder, minilm_batch, minilm_logits):
    assert np.asarray(minilm_batch["attention_mask"]).min() == 0
    assert np.asarray(minilm_batch["token_type_ids"]).max() == 1
    from transformers import BertForSequenceClassification

    theirs = BertForSequenceClassification.from_pretrained(minilm_folder, num_labels=3).eval()
    with torch.no_grad():  # the package holds no head: give both the same
        theirs.classifier.weight.copy_(torch.tensor(np.asarray(minilm.classifier.kernel[...]).T))
        theirs.classifier.bias.copy_(torch.tensor(np.asarray(minilm.classifier.bias[...])))
    np.testing.assert_allclose(minilm_logits, torch_logits(theirs, minilm_batch), atol=1e-4)


def test_a_saved_dense_folder_is_a_plain_bert(write_folder, tensors, batch, evaluate, tmp_path):
    # The source says float16; what is saved is float32 and must be read as that.
    source = write_folder(tensors, torch_dtype="float16", dtype="float16")
    model = load_model(source)
    save_model(model, tmp_path / "out", source=source, label_names=["a", "b", "c"], card="")
    theirs, info = read_by_transformers(tmp_path / "out")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float32
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    np.testing.assert_allclose(torch_logits(theirs, batch), evaluate(model, batch), atol=1e-5)


def test_factors_apply_as_two_torch_linears(factorized, folder, tmp_path):
    """A reader in PyTorch needs no more than `Sequential(Linear(m, k), Linear(k, n))`."""
    from safetensors.torch import load_file

    from lpaf_jax.models import layer_at

    save_model(factorized, tmp_path / "out", source=folder, label_names=["a", "b", "c"], card="")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    records = json.loads((tmp_path / "out" / "config.json").read_text())["lpaf_factors"]
    for path, record in records.items():
        rank = record["rank"]
        n, m = stored[f"{path}.up.weight"].shape[0], stored[f"{path}.down.weight"].shape[1]
        layer = torch.nn.Sequential(torch.nn.Linear(m, rank, bias=False), torch.nn.Linear(rank, n))
        names = {"0.weight": "down.weight", "1.weight": "up.weight", "1.bias": "up.bias"}
        layer.load_state_dict({key: stored[f"{path}.{name}"] for key, name in names.items()})
        x = np.linspace(-1, 1, 2 * m, dtype=np.float32).reshape(2, m)
        with torch.no_grad():
            expected = layer(torch.tensor(x)).numpy()
        np.testing.assert_allclose(layer_at(factorized, path)(x), expected, atol=1e-5)
