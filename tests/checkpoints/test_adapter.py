"""Adapters in and out of PEFT's format, against PEFT itself where PyTorch is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.checkpoints.adapter import CONFIG, WEIGHTS, adapter_tensors, save_adapter
from lpaf_jax.cli import main
from lpaf_jax.models import as_function, fixed_arrays, parameters
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.models.lora import add_adapters
from tests.decoders import GPT2, LLAMA, both, torch_model, torch_outputs
from tests.models.test_lora import trained

READER = Path(__file__).with_name("peft_reader.py")
IDS = np.random.default_rng(0).integers(1, 61, (2, 7))
_OUTER = "base_model.model.bert.encoder.layer.0.attention.self.query"


def answers(model: Any) -> np.ndarray:
    batch = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    return np.asarray(as_function(model)(parameters(model), fixed_arrays(model), batch))


def written(folder: Path, base: Path, **changes: Any) -> Path:
    """An adapter of one layer of the tiny BERT, as PEFT writes it; `None` leaves a field out."""
    folder.mkdir()
    random = np.random.default_rng(3)
    a, b = (0.3 * random.normal(size=size).astype(np.float32) for size in ((2, 32), (32, 2)))
    values = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 6,
    }
    values |= {name: x for name, x in changes.items() if name != "tensors"}
    (folder / CONFIG).write_text(json.dumps(values))
    tensors = {f"{_OUTER}.lora_A.weight": a, f"{_OUTER}.lora_B.weight": b}
    tensors |= changes.get("tensors", {})
    save_file({name: x for name, x in tensors.items() if x is not None}, folder / WEIGHTS)
    return folder


def merged(adapter: Path, *more: str) -> Path:
    out = adapter.with_name("merged")
    words = ["export", str(adapter), "--format", "merged", "--out", str(out), *more]
    assert main(words) == 0
    return out


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / np.sqrt(2)),
        ({"alpha_pattern": {"query": 10}}, 5.0),
        ({"alpha_pattern": {"key": 10}}, 3.0),
    ],
)
def test_an_adapter_is_merged(folder: Path, tmp_path: Path, changes: Any, scale: float) -> None:
    adapter = written(tmp_path / "adapter", folder, **changes)
    out = merged(adapter)
    before, after = (load_file(place / "model.safetensors") for place in (folder, out))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    a, b = load_file(adapter / WEIGHTS).values()
    assert [x.shape for x in (a, b)] == [(2, 32), (32, 2)]
    np.testing.assert_allclose(after[name], before[name] + scale * b @ a, atol=1e-6)
    others = before.keys() - {name}
    assert all(np.array_equal(before[each], after[each]) for each in others)
    assert "**Merged**" in (out / "README.md").read_text()


def test_whole_tensors_beside_it_take_their_places(folder: Path, tmp_path: Path) -> None:
    """A head for other classes than the base model has, and a bias."""
    random = np.random.default_rng(0)
    head, bias = (random.normal(size=s).astype(np.float32) for s in ((5, 32), (32,)))
    tensors = {
        "base_model.model.classifier.weight": head,
        "base_model.model.classifier.bias": np.arange(5, dtype=np.float32),
        "base_model.model.bert.encoder.layer.1.output.dense.bias": bias,
    }
    out = merged(written(tmp_path / "adapter", folder, tensors=tensors))
    found = load_file(out / "model.safetensors")
    np.testing.assert_array_equal(found["classifier.weight"], head)
    np.testing.assert_array_equal(found["bert.encoder.layer.1.output.dense.bias"], bias)
    assert len(json.loads((out / "config.json").read_text())["id2label"]) == 5


def test_the_base_model_may_be_named(folder: Path, tmp_path: Path) -> None:
    adapter = written(tmp_path / "adapter", Path("somebody/else"))
    assert (merged(adapter, "--base", str(folder)) / "config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of kind IA3"),
        ({"use_dora": True}, "of DoRA"),
        ({"lora_bias": True}, "with its own biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed its base model first"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"lora_alpha": float("nan")}, "must be a finite number"),
        ({"alpha_pattern": {"(": 3}}, "which is not a mapping"),
        ({"init_lora_weights": "lora_ga"}, "changed its base model first"),
        ({"alora_invocation_tokens": [1]}, "acts only after certain tokens"),
        ({"base_model_name_or_path": None}, "give --base"),
        ({"tensors": {f"{_OUTER}.lora_B.weight": None}}, "of the same rank"),
        (
            {"tensors": {f"{_OUTER}.lora_A.weight": np.full((2, 32), np.nan, np.float32)}},
            "contains NaN",
        ),
        (
            {"tensors": {"base_model.model.bert.lora_embedding_A": np.ones(2, np.float32)}},
            "is not an update of a linear layer",
        ),
        ({"tensors": {"base_model.model.elsewhere.weight": np.ones(2)}}, "has no tensor elsewhere"),
        (
            {"tensors": {"base_model.model.classifier.bias": np.ones(9, np.float32)}},
            "does not fit",
        ),
        (
            {
                "tensors": {
                    f"{_OUTER.replace('query', 'no')}.lora_A.weight": np.ones((2, 32), np.float32),
                    f"{_OUTER.replace('query', 'no')}.lora_B.weight": np.ones((32, 2), np.float32),
                }
            },
            "has no linear layer",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused(
    folder: Path, tmp_path: Path, changes: Any, message: str, capsys: Any
) -> None:
    adapter, out = written(tmp_path / "adapter", folder, **changes), tmp_path / "out"
    assert main(["export", str(adapter), "--format", "merged", "--out", str(out)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_head_that_is_nowhere_is_not_drawn(
    write_folder: Any, tensors: Any, tmp_path: Path, capsys: Any
) -> None:
    body = {name: x for name, x in tensors.items() if not name.startswith("classifier")}
    adapter = written(tmp_path / "adapter", write_folder(body))
    words = ["export", str(adapter), "--format", "merged", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "classifier" in capsys.readouterr().err


def test_the_dtype_of_the_base_is_kept(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    save_file({n: x.astype(np.float16) for n, x in load_file(file).items()}, file)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"dtype": "float16"}))
    out = merged(written(tmp_path / "adapter", folder))
    assert {x.dtype for x in load_file(out / "model.safetensors").values()} == {np.dtype("f2")}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"


def test_an_adapter_is_no_model(folder: Path, tmp_path: Path, capsys: Any) -> None:
    adapter = written(tmp_path / "adapter", folder)
    words = ["compress", str(adapter), "--task", "rotten_tomatoes", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "--format merged" in capsys.readouterr().err


@pytest.fixture
def peft() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("peft")


# PEFT asks transformers for what it now calls by another name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize(
    ("name", "fields", "targets"),
    [
        ("LlamaForCausalLM", LLAMA, ["q_proj", "down_proj", "lm_head"]),
        ("GPT2LMHeadModel", GPT2, ["c_attn", "c_fc"]),
    ],
)
def test_theirs_is_read(peft: None, tmp_path: Path, name: str, fields: Any, targets: Any) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    untied = {"tie_word_embeddings": False} if "lm_head" in targets else {}
    theirs = torch_model(name, **fields, **untied)
    theirs.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=targets,
        rank_pattern={targets[0]: 2},
        fan_in_fan_out=name.startswith("GPT2"),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(theirs, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter")
    expected, _ = torch_outputs(adapted.eval(), input_ids=IDS, attention_mask=np.ones_like(IDS))
    out = merged(tmp_path / "adapter", "--base", str(tmp_path / "base"))
    np.testing.assert_allclose(answers(load_model(out)), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "factors"])
def test_ours_is_read(peft: None, folder: Path, factorized: Any, tmp_path: Path, kind: str) -> None:
    """By a process that has torch, transformers and peft alone."""
    base, model = folder, load_model(folder)
    if kind == "factors":
        base, model = tmp_path / "base", factorized
        labels = ["bad", "good", "other"]
        save_model(model, base, source=folder, label_names=labels, card="")
    add_adapters(model, 3, scale=1.5)
    trained(model)
    adapter = tmp_path / "adapter"
    chosen: Any = {"base": str(base), "family": FAMILIES["bert"]}
    save_adapter(adapter, adapter_tensors(model), head="classification", **chosen)
    np.save(adapter / "ids.npy", IDS)
    subprocess.run([sys.executable, "-I", READER, adapter], check=True)
    np.testing.assert_allclose(np.load(adapter / "logits.npy"), answers(model), atol=1e-4)
    (adapter / "ids.npy").unlink()
    np.testing.assert_allclose(answers(load_model(merged(adapter))), answers(model), atol=1e-4)


@pytest.mark.parametrize(
    ("family", "name", "fields"),
    [
        pytest.param("llama", "LlamaForCausalLM", LLAMA, marks=pytest.mark.slow),
        ("gpt2", "GPT2LMHeadModel", GPT2),
    ],
)
def test_ours_of_a_decoder_is_read(
    peft: None, tmp_path: Path, family: str, name: str, fields: Any
) -> None:
    """GPT-2 stores its matrices as they are applied, which PEFT must be told."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model, _ = both(base, name, **fields)
    add_adapters(model, 3, scale=1.5)
    trained(model)
    chosen: Any = {"base": str(base), "family": FAMILIES[family]}
    save_adapter(adapter, adapter_tensors(model), head="lm", **chosen)
    np.save(adapter / "ids.npy", IDS)
    subprocess.run([sys.executable, "-I", READER, adapter], check=True)
    np.testing.assert_allclose(np.load(adapter / "logits.npy"), answers(model), atol=1e-4)
