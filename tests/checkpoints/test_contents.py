"""What lies in a folder beside, or in the place of, what its config.json asks for."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.checkpoints import DecoderOnDisk, load_model, save_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.inspection import inspect_model
from lpaf_jax.export import export_dense
from lpaf_jax.models import parameters
from tests.decoders import IDS, LLAMA, assert_same, torch_model
from tests.tiny_decoder import write_decoder, write_text

QUERY = "bert.encoder.layer.1.attention.self.query"
WRAPPED = {
    "DataParallel": lambda n: f"module.{n}",
    "torch.compile": lambda n: f"_orig_mod.{n}",
    "torch.compile of DataParallel": lambda n: f"_orig_mod.module.{n}",
    "torch.compile of each layer": lambda n: n.replace("layer.1.", "layer.1._orig_mod."),
    "FSDP": lambda n: n.replace("layer.1.", "layer.1._fsdp_wrapped_module."),
    "an attribute of a module": lambda n: f"model.{n}",
    "PEFT": lambda n: "base_model.model." + n.replace("query.", "query.base_layer."),
    "the prefix twice": lambda n: n.replace("bert.", "bert.bert."),
}


@pytest.fixture
def warned(caplog: Any) -> Any:
    """`warned()` gives what was warned of, and forgets it."""

    def taken() -> list[str]:
        said = [r.getMessage() for r in caplog.records if r.name.startswith("lpaf_jax.")]
        caplog.clear()
        return said

    return taken


def same(one: Any, other: Any) -> None:
    expected = parameters(other)
    for path, array in parameters(one).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_of_wrappers_are_taken_off(write_folder, tensors, folder, warned, wrapper):
    wrapped = write_folder({WRAPPED[wrapper](name): array for name, array in tensors.items()})
    same(load_model(wrapped), load_model(folder))
    shown, expected = inspect_model(wrapped), inspect_model(folder)
    assert shown["matrices"] == expected["matrices"]
    assert warned() == []


def test_an_export_has_the_names_that_pytorch_knows(tmp_path):
    plain = write_decoder(tmp_path / "plain", "llama", tie_word_embeddings=False)
    wrapped = write_decoder(tmp_path / "wrapped", "llama", tie_word_embeddings=False)
    tensors = load_file(plain / "model.safetensors")
    save_file({f"_orig_mod.{n}": x for n, x in tensors.items()}, wrapped / "model.safetensors")
    export_dense(wrapped, tmp_path / "out", dtype="float32")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()


def test_a_wrapped_decoder_keeps_its_head(tmp_path):
    """Its own prefix is `model`, too."""
    plain = write_decoder(tmp_path / "plain", "llama", tie_word_embeddings=False)
    wrapped = write_decoder(tmp_path / "wrapped", "llama", tie_word_embeddings=False)
    tensors = load_file(plain / "model.safetensors")
    save_file({f"model.{n}": x for n, x in tensors.items()}, wrapped / "model.safetensors")
    same(load_model(wrapped), load_model(plain))


def test_names_that_nothing_is_known_of_are_shown(write_folder, tensors):
    folder = write_folder({f"student.{name}": array for name, array in tensors.items()})
    with pytest.raises(LpafError, match=r"are missing.*unknown names instead: student\.bert"):
        load_model(folder)


def test_what_is_missing_is_said_by_inspect_too(write_folder, tensors, warned):
    del tensors[f"{QUERY}.weight"]
    assert len(inspect_model(write_folder(tensors))["matrices"]) == 11
    assert "1 tensors are missing" in warned()[0]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_one_parameter_under_two_names(write_folder, tensors, folder, dtype):
    first, second = f"{QUERY}.weight", f"{QUERY.removeprefix('bert.')}.weight"
    stored = {n: x.astype(dtype) for n, x in tensors.items()}
    copies = write_folder(stored | {second: stored[first].copy()})
    same(load_model(copies), load_model(write_folder(stored)))
    for other in (stored[first] * np.array(1.5, dtype), stored[first][:-1].copy()):
        both = write_folder(stored | {second: other})
        with pytest.raises(LpafError, match="are the same parameter but differ") as caught:
            load_model(both)
        assert first in str(caught.value)
        assert second in str(caught.value)
        with pytest.raises(LpafError, match="are the same parameter but differ"):
            inspect_model(both)


def test_a_copy_in_codes_is_refused(write_folder, tensors):
    codes = {"module.classifier.weight": tensors["classifier.weight"].astype(ml_dtypes.float8_e5m2)}
    with pytest.raises(LpafError, match="is stored as F8_E5M2, which is not supported"):
        load_model(write_folder(tensors | codes))


def test_one_parameter_in_two_shards(write_folder, tensors):
    folder = write_folder({})
    other = {"classifier.bias": tensors["classifier.bias"] + 1}
    save_file(tensors, folder / "a.safetensors")
    save_file(other, folder / "b.safetensors")
    index = dict.fromkeys(tensors, "a.safetensors") | {"classifier.weight": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(LpafError, match=r"a\.safetensors and classifier\.bias in b\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize(
    "name",
    [
        f"{QUERY}.lora_A.default.weight",  # PEFT
        f"{QUERY}.lora_B",  # loralib
        f"{QUERY}.lora_magnitude_vector.default.weight",  # DoRA
        f"{QUERY}.hada_w1_a.default",  # LoHa
        f"{QUERY}.lora.down.weight",
        f"{QUERY}.loraA.weight",
    ],
)
def test_lora_that_is_not_merged_is_refused(write_folder, tensors, name):
    folder = write_folder(tensors | {name: np.ones((4, 32), np.float32)})
    for read in (load_model, inspect_model):
        with pytest.raises(LpafError, match=r"that are not merged \(.*merge_and_unload"):
            read(folder)


def test_what_nothing_reads_is_counted_and_named(write_folder, tensors, warned):
    surplus = {n.replace("layer.1", "layer.2"): x for n, x in tensors.items() if "layer.1" in n}
    folder = write_folder(tensors | surplus)
    load_model(folder)
    (said,) = warned()
    shown = inspect_model(folder)
    assert (warned(), len(shown["matrices"])) == ([said], 12)
    assert shown["parameters"]["total"] == sum(x.size for x in tensors.values())
    assert f"{folder}: 16 tensors are not used" in said
    assert "bert.encoder.layer.2.attention.output.LayerNorm.bias" in said


@pytest.mark.parametrize(
    "name",
    [
        "bert.embeddings.position_ids",
        "bert.embeddings.token_type_ids",
        "cls.predictions.transform.dense.weight",
        "lm_head.bias",
        "vocab_projector.weight",
        "qa_outputs.weight",
    ],
)
def test_tables_and_heads_of_other_tasks_need_no_word(write_folder, tensors, warned, name):
    load_model(write_folder(tensors | {name: np.ones((2, 32), np.float32)}))
    assert warned() == []


def test_a_scale_of_the_model_is_no_quantization(write_folder, tensors, warned):
    load_model(write_folder(tensors | {"logit_scale": np.ones((), np.float32)}))
    assert "1 tensors are not used (logit_scale)" in warned()[0]


def test_what_is_exported_is_finite(write_folder, tensors, tmp_path):
    tensors[f"{QUERY}.weight"][3, 4] = np.nan
    with pytest.raises(LpafError, match=rf"tensor {QUERY}\.weight contains NaN or infinity"):
        export_dense(write_folder(tensors), tmp_path / "out", dtype="bfloat16")
    assert not (tmp_path / "out").exists()


def test_more_of_the_own_head_does(write_folder, tensors, warned):
    load_model(write_folder(tensors | {"classifier.extra.weight": np.ones((2, 32), np.float32)}))
    assert "1 tensors are not used (classifier.extra.weight)" in warned()[0]


def test_biases_that_the_config_does_not_tell_of(tmp_path, warned, capsys):
    folder = write_decoder(tmp_path / "m", "llama")
    tensors = load_file(folder / "model.safetensors")
    bias = {"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}
    save_file(tensors | bias, folder / "model.safetensors")
    DecoderOnDisk(folder)
    assert "(model.layers.0.self_attn.q_proj.bias)" in warned()[0]
    text = write_text(tmp_path / "text.txt", 60, seed=0)
    assert main(["evaluate", str(folder), "--data", str(text)]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("warning: ") == 1
    assert "q_proj.bias" in shown.err
    assert "perplexity" in json.loads(shown.out)


def test_lost_layers_are_not_counted_as_compression(tmp_path):
    text = write_text(tmp_path / "text.txt", 200, seed=0)
    found = []
    for layers in (2, 3):
        folder = write_decoder(tmp_path / f"m{layers}", "llama", num_hidden_layers=layers)
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 2}))
        out = tmp_path / f"run{layers}"
        words = ["--calibration", str(text), "--recipe", "drone", "--samples", "4", "--quiet"]
        assert main(["compress", str(folder), *words, "--out", str(out)]) == 0
        found.append(json.loads((out / "metrics.json").read_text())["bytes_on_disk"])
    source = DecoderOnDisk(tmp_path / "m2")
    tensors = load_file(tmp_path / "m2" / "model.safetensors")
    copies = {f"module.{name}": x for name, x in tensors.items()}
    save_file(tensors | copies, tmp_path / "m2" / "model.safetensors")
    added = sum(x.nbytes for x in tensors.values())
    assert DecoderOnDisk(tmp_path / "m2").unread_bytes == source.unread_bytes + added
    assert found[0]["final"] == pytest.approx(found[1]["final"], rel=0.01)
    assert found[0]["dense"] == pytest.approx(found[1]["dense"], rel=0.05)


class TestTiedHeads:
    """`tie_word_embeddings: true`, and a head in the file all the same."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        pytest.importorskip("torch")
        torch_model("LlamaForCausalLM", **LLAMA, tie_word_embeddings=False).save_pretrained(
            tmp_path / "own"
        )
        values = json.loads((tmp_path / "own" / "config.json").read_text())
        values["tie_word_embeddings"] = True
        (tmp_path / "own" / "config.json").write_text(json.dumps(values))
        return tmp_path / "own"

    def test_a_head_that_differs_is_kept_as_in_pytorch(self, folder, jit, warned):
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        assert_same(jit, load_model(folder), theirs)
        assert "lm_head.weight differs from model.embed_tokens.weight" in warned()[0]

    def test_every_way_to_read_it_and_to_write_it_again(self, folder, tmp_path):
        from lpaf_jax.checkpoints.torch_twin import torch_twin

        head = load_file(folder / "model.safetensors")["lm_head.weight"]
        np.testing.assert_array_equal(DecoderOnDisk(folder).ending().lm_head.kernel[...], head.T)
        np.testing.assert_array_equal(torch_twin(folder).state_dict()["lm_head.weight"], head)
        export_dense(folder, tmp_path / "dense", dtype="float32")
        save_model(load_model(folder), tmp_path / "saved", source=folder, label_names=None, card="")
        expected = np.asarray(load_model(folder)(IDS))
        for written in (tmp_path / "dense", tmp_path / "saved"):
            assert json.loads((written / "config.json").read_text())["tie_word_embeddings"] is False
            np.testing.assert_array_equal(np.asarray(load_model(written)(IDS)), expected)

    def test_a_copy_stays_tied(self, tmp_path, warned):
        folder = write_decoder(tmp_path / "m", "llama", tie_word_embeddings=True)
        tensors = load_file(folder / "model.safetensors")
        copy = {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
        save_file(tensors | copy, folder / "model.safetensors")
        assert load_model(folder).lm_head is None
        assert DecoderOnDisk(folder).ending().lm_head is None
        assert warned() == []

    def test_the_one_tensor_may_have_the_name_of_the_head(self, tmp_path, warned):
        pytest.importorskip("torch")
        from transformers import AutoModelForCausalLM

        from lpaf_jax.checkpoints.torch_twin import torch_twin

        folder = write_decoder(tmp_path / "m", "llama", tie_word_embeddings=True)
        expected = np.asarray(load_model(folder)(IDS % 50))
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        export_dense(folder, tmp_path / "dense", dtype="float32")
        for written in (folder, tmp_path / "dense"):
            np.testing.assert_array_equal(np.asarray(load_model(written)(IDS % 50)), expected)
            theirs = AutoModelForCausalLM.from_pretrained(written)
            for model in (theirs, torch_twin(written)):
                np.testing.assert_array_equal(
                    model.get_input_embeddings().weight.detach(), tensors["lm_head.weight"]
                )
                np.testing.assert_array_equal(
                    model.lm_head.weight.detach(), tensors["lm_head.weight"]
                )
        assert DecoderOnDisk(folder).embedder().body.embeddings.weight.shape == (50, 32)
        assert warned() == []

    def test_a_classifier_does_not_ask(self, folder, warned):
        load_model(folder, head="classification", num_labels=2)
        assert warned() == []


class TestBeforeTheFirstBlock:
    """Said before any long work starts, wherever in the file it lies."""

    @pytest.mark.parametrize(
        "name",
        [
            "model.embed_tokens.weight",
            "model.layers.1.mlp.down_proj.weight",
            "model.layers.1.input_layernorm.weight",
            "model.norm.weight",
            "lm_head.weight",
        ],
    )
    @pytest.mark.parametrize("kind", ["NaN", "infinity", "codes", "shape"])
    def test_a_run_without_a_task_refuses(self, tmp_path, capsys, name, kind):
        folder = write_decoder(tmp_path / "m", "llama", tie_word_embeddings=False)
        tensors = load_file(folder / "model.safetensors")
        if kind == "codes":
            tensors[name] = (10 * tensors[name]).astype(np.int8)
        elif kind == "shape":
            tensors[name] = tensors[name][..., :-1].copy()
        else:
            tensors[name].flat[-1] = np.nan if kind == "NaN" else np.inf
        save_file(tensors, folder / "model.safetensors")
        text = write_text(tmp_path / "text.txt", 200, seed=0)
        words = ["--calibration", str(text), "--out", str(tmp_path / "run")]
        assert main(["compress", str(folder), *words]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"tensor {name} " in line
        assert not (tmp_path / "run").exists()
