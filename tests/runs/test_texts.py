"""Runs without a task as a whole, on decoders that are compressed in seconds."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.checkpoints import load_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.text_decoder import Decoder
from tests.one_shot import compress, perplexity, words
from tests.one_shot import place as place
from tests.tiny import write_model
from tests.tiny_decoder import LENGTH, write_decoder, write_text


def test_the_model_that_is_left_reloads_and_has_the_perplexity_that_is_told(place: Path) -> None:
    found = json.loads((place / "run" / "metrics.json").read_text())
    expected = perplexity(place / "run" / "model", place / "held_out.txt")
    assert found["stages"]["final"]["perplexity"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "fields", [{"tie_word_embeddings": False}, {"scale_attn_weights": False, "eos_token_id": 0}]
)
def test_what_a_config_denies_is_carried_along(place: Path, fields: dict[str, Any]) -> None:
    name = "-".join(fields)
    source = write_decoder(place / name, "gpt2", **fields, summary_activation=None)
    found = pipeline.compress(
        source,
        out=place / f"{name}-out",
        calibration=place / "calibration.txt",
        held_out=place / "held_out.txt",
        samples=6,
        params=0.6,
        recipe="drone",
        quiet=True,
    )
    folder = place / f"{name}-out" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert {key: config[key] for key in fields} == fields
    assert config["summary_activation"] is None
    told = found["stages"]["final"]["perplexity"]
    assert told == pytest.approx(perplexity(folder, place / "held_out.txt"), rel=1e-4)
    mode = (folder / "config.json").stat().st_mode
    assert (folder / "model.safetensors").stat().st_mode == mode


def test_what_is_told_of_sizes_is_so(place: Path) -> None:
    found = json.loads((place / "run" / "metrics.json").read_text())
    tensors = load_file(place / "run" / "model" / "model.safetensors")
    dense = load_file(place / "llama" / "model.safetensors")
    total, kept = (sum(x.size for x in each.values()) for each in (dense, tensors))
    assert found["total_params_ratio"] == pytest.approx(kept / total)
    assert found["params"]["final"]["total"] == kept
    assert 0.5 < found["encoder_params_ratio"] <= 0.6
    file = place / "run" / "model" / "model.safetensors"
    assert found["bytes_on_disk"]["final"] == file.stat().st_size


def test_what_lies_beside_the_weights(place: Path) -> None:
    folder = place / "run" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "lpaf_llama"
    assert config["architectures"] == ["LpafLlamaForCausalLM"]
    assert len(config["lpaf_factors"]) == 2 * 7
    assert (folder / "tokenizer.json").is_file()
    card = (folder / "README.md").read_text()
    assert "to minimise the change of each layer's outputs on the data" in card
    assert not (place / "run" / "checkpoints").exists()


def test_the_tokens_that_were_read_are_told(place: Path) -> None:
    found = json.loads((place / "run" / "metrics.json").read_text())
    # 100 tokens are six whole pieces of 16.
    assert found["data"] == {"calibration_tokens": 6 * LENGTH, "judged_tokens": 6 * LENGTH}
    assert found["judged_by"] == "held-out text"


def test_a_finished_run_whose_result_is_damaged_is_not_called_finished(
    place: Path, tmp_path: Path
) -> None:
    text, out = place / "calibration.txt", tmp_path / "run"
    chosen: dict[str, Any] = {
        "held_out": place / "held_out.txt",
        "samples": 6,
        "params": 0.6,
        "recipe": "drone",
        "quiet": True,
    }
    mend = "run the same command again, which rebuilds what is missing"
    for damage in ("gone", "cut", "list"):
        shutil.copytree(place / "run", out)
        if damage == "gone":
            shutil.rmtree(out / "model")
        elif damage == "cut":
            file = out / "model" / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1])
        else:
            (out / "metrics.json").write_text("[]")
        with pytest.raises(LpafError, match=mend):
            pipeline.compress(place / "llama", calibration=text, out=out, **chosen)
        if damage == "gone":
            (out / "metrics.json").unlink()
            pipeline.compress(place / "llama", calibration=text, out=out, **chosen)
            load_model(out / "model")
        shutil.rmtree(out)


def test_a_finished_run_is_not_done_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "run" / "metrics.json").read_bytes()
    loud = [word for word in words(place, "run") if word != "--quiet"]
    assert main(loud) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (place / "run" / "metrics.json").read_bytes() == before


def test_what_it_came_to_is_printed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loud = [word for word in words(place, "run") if word != "--quiet"]
    assert main(loud) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "of the compressible weights" in printed
    assert "erplexity" in printed
    assert "report.html" in printed
    page = (place / "run" / "report.html").read_text()
    assert "s outputs on the data" in page
    assert "No training follows" in page


def test_a_stopped_run_goes_on_where_it_was(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "assemble", stop)
        assert main(words(place, "stopped")) == 130
    assert not (place / "stopped" / "model").exists()
    assert main(words(place, "stopped")) == 0
    one, other = (
        load_file(place / run / "model" / "model.safetensors") for run in ("run", "stopped")
    )
    assert one.keys() == other.keys()
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name], err_msg=name)


@pytest.mark.parametrize(
    ("recipe", "ranks"), [("fwsvd", "share"), ("svd", "uniform"), ("kfac-svd", "loss")]
)
def test_other_recipes(place: Path, recipe: str, ranks: str) -> None:
    found = compress(place, recipe, recipe=recipe, ranks=ranks)
    assert 0 < found["output_energy_lost"] < 1
    assert found["recipe"] == recipe
    assert found["encoder_params_ratio"] <= 0.6
    load_model(place / recipe / "model")


@pytest.fixture(scope="module")
def begun(place: Path) -> Path:
    """The folder of a run that was stopped before its first block."""

    def stop(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Decoder, "cut", stop)
        compress(place, "begun", held_out=place / "held_out.txt")
    return place / "begun"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"params": 0.5}, "params 0.6 there, 0.5 now"),
        ({"recipe": "svd", "ranks": "share"}, "recipe 'drone' there, 'svd' now"),
        ({"samples": 5}, "samples 6 there, 5 now"),
        ({"length": 8, "seed": 3}, "length None there, 8 now.*seed 0 there, 3 now"),
    ],
    ids=str,
)
def test_settings_of_another_run_are_named(
    place: Path, begun: Path, changed: dict[str, Any], told: str
) -> None:
    given = {"held_out": place / "held_out.txt"} | changed
    for out in ("run", "begun"):
        with pytest.raises(LpafError, match=rf"{place / out} holds another run \(.*{told}"):
            compress(place, out, **given)
    assert begun.is_dir()


@pytest.mark.parametrize("change", ["text", "weights", "config", "path", "no held-out"])
def test_what_another_run_has_read_is_named(
    place: Path, begun: Path, tmp_path: Path, change: str
) -> None:
    moved = Path(shutil.copytree(place, tmp_path / "place"))
    # The paths that the run was given are those of the copy now.
    note = moved / "begun" / "settings.json"
    note.write_text(note.read_text().replace(str(place), str(moved)))
    given: dict[str, Any] = {"held_out": moved / "held_out.txt"}
    assert_goes_on(moved, given)
    told = rf"started with other data or weights \({{}}\): {moved}"
    if change == "text":
        write_text(moved / "calibration.txt", 400, seed=7)
        told = told.format("calibration text")
    elif change == "weights":
        os.utime(moved / "llama" / "model.safetensors", (1, 1))
        told = told.format("weights")
    elif change == "config":
        config = json.loads((moved / "llama" / "config.json").read_text())
        (moved / "llama" / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
        told = told.format(r"config\.json")
    elif change == "path":
        given["calibration"] = write_text(moved / "other.txt", 400, seed=7)
        told = f"calibration '{moved}/calibration.txt' there, '{moved}/other.txt' now"
    else:
        given["held_out"] = None
        told = f"held_out '{moved}/held_out.txt' there, None now"
    with pytest.raises(LpafError, match=told):
        compress(moved, "begun", **given)
    assert begun.is_dir()


def assert_goes_on(place: Path, given: dict[str, Any]) -> None:
    def go(*_: Any, **__: Any) -> None:
        raise RuntimeError("it goes on")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="it goes on"):
        patch.setattr(Decoder, "cut", go)
        compress(place, "begun", **given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"params": 1.0}, "params is 1.0, but must lie between 0 and 1"),
        ({"params": 0.0}, "params is 0.0, but must be in"),
        (
            {"length": LENGTH + 1},
            f"length is {LENGTH + 1}, but the model reads at most {LENGTH} tokens",
        ),
        ({"length": 1}, "length is 1, but must be a whole number, at least 4"),
        ({"samples": 0}, "samples is 0, but must be a whole number, at least 1"),
        ({"calibration": "nowhere.txt"}, "nowhere.txt does not exist; name a text file"),
        ({"held_out": "nowhere.txt"}, "nowhere.txt does not exist; name a text file"),
        (
            {"recipe": "afm"},
            "'affine' changes the bias of every layer, but .*down_proj has none: use",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_first(
    place: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(LpafError, match=message):
        compress(place, "refused", **changed)
    assert not (place / "refused").exists()


def test_a_short_calibration_text_is_read_whole(place: Path) -> None:
    chosen = {"samples": 1000, "held_out": place / "held_out.txt"}
    assert compress(place, "whole", **chosen)["data"]["calibration_tokens"] == 400


def test_a_held_out_text_of_less_than_a_piece(place: Path) -> None:
    short = write_text(place / "short.txt", LENGTH - 1, seed=3)
    with pytest.raises(LpafError, match=r"short\.txt has fewer than the 16 tokens"):
        compress(place, "refused", held_out=short)


def test_models_that_nothing_can_be_asked_or_taken_from(place: Path, tmp_path: Path) -> None:
    bert = write_model(tmp_path / "bert")
    text = place / "calibration.txt"
    with pytest.raises(LpafError, match="bert is an encoder without a task head: .*or --task"):
        pipeline.compress(bert, calibration=text, out=tmp_path / "out")
    with pytest.raises(LpafError, match="is already factorized"):
        pipeline.compress(place / "run" / "model", calibration=text, out=tmp_path / "out")


@pytest.mark.parametrize("damage", ["nan", "missing", "shape"])
def test_damaged_weights_are_named(place: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "llama"
    shutil.copytree(place / "llama", copy)
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if damage == "nan":
        tensors[name][0, 0] = np.nan
    elif damage == "shape":
        tensors[name] = tensors[name][:, :-1].copy()
    else:
        del tensors[name]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(LpafError, match=name.replace(".", r"\.")):
        pipeline.compress(
            copy, calibration=place / "calibration.txt", out=tmp_path / "o", samples=4, quiet=True
        )


def test_a_token_beyond_the_table_is_refused_before_any_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "llama", tmp_path / "llama")
    (tmp_path / "llama" / "added_tokens.json").write_text(json.dumps({"<user>": 50}))
    for name in ("calibration", "held_out"):
        shutil.copy(place / f"{name}.txt", tmp_path)
    assert main(words(tmp_path, "run")) == 2
    said = capsys.readouterr().err
    assert "ids up to 50 ('<user>'), but the model has 50 token embeddings" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_perplexity_that_is_not_finite_is_null_and_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(place / "llama", tmp_path / "llama")
    tensors = load_file(source / "model.safetensors")
    head = tensors["lm_head.weight"] * np.float32(1e5)
    save_file(tensors | {"lm_head.weight": head}, source / "model.safetensors")
    for name in ("calibration", "held_out"):
        shutil.copy(place / f"{name}.txt", tmp_path)
    assert main(words(tmp_path, "run")[:-1]) == 0  # not quiet
    told = " ".join(capsys.readouterr().out.split())
    assert "not finite" in told
    text = (tmp_path / "run" / "metrics.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["stages"] == {"dense": {"perplexity": None}, "final": {"perplexity": None}}
    assert "not finite" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert main(words(tmp_path, "run")[:-1]) == 0  # finished: read from the file
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert "not finite" in capsys.readouterr().out
