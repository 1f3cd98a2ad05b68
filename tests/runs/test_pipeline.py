"""The whole job on a tiny model: what it leaves, what it does when run again, its ablations."""

import importlib.metadata
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.serve import load_predictor
from lpaf_jax.models import parameters
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.stages import Factorize, FineTune, MixedTune, Prune, Tune
from tests.tiny import ENCODER, LAYERS, SIDES, Tiny, cut_back, fine_tuned, weights

STAGES = ["dense", "pruned", "factorized", "final"]
# floor(p Σmn / Σ(m + n)) at p = 0.5, and what that rank keeps.
RANK = ENCODER // (2 * SIDES)
RATIO = RANK * SIDES / ENCODER


def read(folder: Path, name: str = "metrics.json") -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text()))


def files(folder: Path) -> dict[str, tuple[int, int]]:
    found = (p for p in folder.rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size)
        for p in found
        if p.name != "run.log"
    }


def log(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "logs" / "train.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a stage was run")

    for stage in (FineTune, Prune, Factorize, Tune, MixedTune):
        monkeypatch.setattr(stage, "run", refuse)


def test_few_steps_are_warned_of_and_the_remedy_is_enough(finished: Path) -> None:
    told = (finished / "logs" / "run.log").read_text()
    warned = re.search(r"fine-tuning has only (\d+) steps.*--finetune-epochs (\d+) gives", told)
    assert warned is not None
    metrics = read(finished)
    per_epoch = metrics["data"]["train"] // metrics["settings"]["batch"]
    assert int(warned[1]) < 100 <= int(warned[2]) * per_epoch < 100 + per_epoch


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    assert sorted(p.name for p in finished.iterdir()) == [
        *("analysis.json", "logs", "memory.json", "metrics.json", "model", "report.html"),
        *("seconds.json", "settings.json", "stages"),
    ]
    for folder in (finished / "model", *(finished / "stages" / s for s in STAGES[:3])):
        held = {p.name for p in folder.iterdir()}
        assert held >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
        assert not [name for name in held if name.startswith(".")]
    assert "final" not in os.listdir(finished / "stages")
    assert {p.name for p in (finished / "logs").iterdir()} == {"run.log", "train.jsonl"}
    told = (finished / "logs" / "run.log").read_text()
    for words in (
        "stage 1 of 5: fine-tuning",
        "tune factors  step 28: validation",
        "final         done",
    ):
        assert f"INFO lpaf_jax: {words}" in told
    final = 100 * read(finished)["stages"]["final"]["accuracy"]
    assert re.search(rf"^Final +{final:.1f} %", told, re.MULTILINE)
    page = (finished / "report.html").read_text()
    assert "<html" in page
    assert "data:image" in page or "<svg" in page
    # The card of the final model is written anew once its figures are known.
    accuracy = read(finished)["stages"]["final"]["accuracy"]
    assert f"{100 * accuracy:.1f}" in (finished / "model" / "README.md").read_text()


def test_the_metrics_hold_what_the_readers_of_them_expect(finished: Path) -> None:
    metrics = read(finished)
    assert list(metrics["stages"]) == STAGES
    n = metrics["data"]["test"]
    for figures in metrics["stages"].values():
        assert figures["n"] == n == sum(c["n"] for c in figures["per_class"].values())
        assert figures["correct"] == round(figures["accuracy"] * n)
        low, high = figures["interval95"]
        assert low <= figures["accuracy"] <= high
        assert figures["per_class"].keys() == {"negative", "positive"}
    accuracy = {name: figures["accuracy"] for name, figures in metrics["stages"].items()}
    assert metrics["retained"] == pytest.approx(accuracy["final"] / accuracy["dense"])
    right = {c: accuracy[c] * n for c in ("dense", "final")}
    paired = metrics["paired"]
    gained = paired["final_only"] - paired["dense_only"]
    assert gained == round(right["final"] - right["dense"])
    assert metrics["data"]["share_cut"] == 0
    assert metrics["latency_ms"]["threads"] >= 1
    assert metrics["recipe"] == "lpaf"
    assert metrics["seed"] == metrics["settings"]["seed"] == 0
    assert metrics["peak_memory_bytes"] > 1e7
    for name in ("jaxlib", "tokenizers", "transformers", "datasets"):
        assert metrics["versions"][name] == importlib.metadata.version(name)
    assert {"python", "jax", "flax", "numpy", "lpaf-jax"} <= metrics["versions"].keys()
    spent = metrics["seconds"]
    assert spent.keys() == {*STAGES, "evaluate", "total"}
    assert spent["total"] == pytest.approx(sum(spent.values()) - spent["total"], abs=0.02)
    for model in ("dense", "final"):
        for size in ("1", "32"):
            times = metrics["latency_ms"][model][size]
            assert 0 < times["min"] <= times["median"] <= times["max"]
        file = finished / ("model" if model == "final" else "stages/dense") / "model.safetensors"
        assert metrics["bytes_on_disk"][model] == file.stat().st_size


def test_the_final_file_holds_factors_of_the_rank_that_was_asked_for(finished: Path) -> None:
    metrics = read(finished)
    dense = load_file(finished / "stages" / "dense" / "model.safetensors")
    final = load_file(finished / "model" / "model.safetensors")
    counts = {name: {} for name in ("dense", "final")}
    for name, tensors in (("dense", dense), ("final", final)):
        kernels = [t.size for key, t in tensors.items() if ".layer." in key and t.ndim == 2]
        counts[name] = {"encoder": sum(kernels), "total": sum(t.size for t in tensors.values())}
    assert counts == metrics["params"]
    assert counts["dense"]["encoder"] == ENCODER
    assert metrics["rank"] == RANK
    assert metrics["encoder_params_ratio"] == pytest.approx(RATIO)
    total = counts["final"]["total"] / counts["dense"]["total"]
    assert metrics["total_params_ratio"] == pytest.approx(total)
    down = {key: t for key, t in final.items() if key.endswith("down.weight")}
    assert len(down) == 6 * LAYERS
    for key, a in down.items():
        place = key.removesuffix("down.weight")
        b = final[f"{place}up.weight"]
        whole = dense[f"{place}weight"]
        assert f"{place}weight" not in final
        assert (a.shape, b.shape) == ((RANK, whole.shape[1]), (whole.shape[0], RANK))
    assert metrics["bytes_on_disk"]["final"] < metrics["bytes_on_disk"]["dense"]


def test_the_task_is_learnt_and_kept(finished: Path) -> None:
    found = {name: figures["accuracy"] for name, figures in read(finished)["stages"].items()}
    assert found["pruned"] > 0.9
    assert found["final"] > 0.9


def test_pruning_leaves_the_share_of_weights_it_was_told(finished: Path) -> None:
    pruned = load_file(finished / "stages" / "pruned" / "model.safetensors")
    beside = load_file(finished / "stages" / "pruned" / "state.safetensors")
    masks = {k.removeprefix("mask."): m for k, m in beside.items() if k.startswith("mask.")}
    assert sum(m.sum() for m in masks.values()) == pytest.approx(0.5 * ENCODER, abs=1)
    assert read(finished, "analysis.json")["sparsity"] == pytest.approx(0.5, abs=1e-3)
    for path, mask in masks.items():
        kernel = pruned[path.replace(".kernel", ".weight")].T
        assert not kernel[~mask].any()
        assert kernel[mask].all()


def test_the_log_tells_every_stage_in_order(finished: Path) -> None:
    rows = log(finished)
    assert list(dict.fromkeys(row["stage"] for row in rows)) == ["finetune", "prune", "tune"]
    for stage in ("finetune", "prune", "tune"):
        steps = [row for row in rows if row["stage"] == stage and "loss" in row]
        assert steps[-1]["step"] == steps[-1]["steps"]
        assert len({row["step"] for row in steps}) == len(steps)
        assert all({"lr", "seconds_per_step"} <= row.keys() for row in steps)
        last = [row for row in rows if row["stage"] == stage][-1]
        assert last["validation_accuracy"] > 0.5
    pruning = [row["sparsity"] for row in rows if "sparsity" in row]
    assert pruning == sorted(pruning)
    assert pruning[-1] == pytest.approx(0.5)
    chance = [row["p"] for row in rows if "p" in row]
    assert chance == sorted(chance, reverse=True)
    assert chance[0] > 0 == chance[-1]


@pytest.mark.usefixtures("no_training")
def test_a_finished_run_is_not_run_again(
    tiny: Tiny, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(finished)
    found = compress(**tiny.chosen(finished, quiet=False, keep="all", preset="quick"))
    assert found == read(finished)
    assert files(finished) == before
    assert capsys.readouterr() == ("", f"{finished} is already finished; nothing to do\n")


@pytest.mark.usefixtures("no_training")
def test_a_report_that_is_missing_is_written_again(
    tiny: Tiny, finished: Path, tmp_path: Path
) -> None:
    run = cut_back(finished, tmp_path / "run")
    for name in ("metrics.json", "analysis.json"):
        (run / name).write_bytes((finished / name).read_bytes())
    compress(**tiny.chosen(run))
    assert (run / "report.html").read_bytes() == (finished / "report.html").read_bytes()


@pytest.mark.usefixtures("no_training", "no_latency")
def test_a_run_killed_before_its_metrics_needs_no_training(
    tiny: Tiny, finished: Path, tmp_path: Path
) -> None:
    run = cut_back(finished, tmp_path / "run")
    (run / "checkpoints" / "tune").mkdir(parents=True)
    found = compress(**tiny.chosen(run, keep="final"))
    assert found["stages"] == read(finished)["stages"]
    held = sorted(p.name for p in run.iterdir())
    assert "stages" not in held
    assert "checkpoints" not in held
    assert weights(run) == weights(finished)
    with pytest.raises(LpafError, match=r"it has final; .*\(--keep final\)"):
        load_predictor(run, stage="dense")
    # Nothing is done, or missed, by running it once more.
    before = files(run)
    assert compress(**tiny.chosen(run, keep="final")) == found
    assert files(run) == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_latency")
@pytest.mark.parametrize(
    ("recipe", "chosen"),
    [
        ("lpaf-without-step-1", {"solver": "elementwise", "ridge": 0.01}),
        ("lpaf-without-step-2", {}),
        ("lpaf-without-step-3", {"importance": "adam"}),
        ("svd-ft", {}),
    ],
)
def test_each_ablation_runs_on_the_stages_of_another_run(
    tiny: Tiny, finished: Path, tmp_path: Path, recipe: str, chosen: dict[str, Any]
) -> None:
    given = tiny.chosen(tmp_path / "run", reuse=finished, recipe=recipe)
    metrics = compress(**(given | chosen))
    assert metrics["recipe"] == recipe
    pruned = recipe not in ("lpaf-without-step-1", "svd-ft")
    present = [s for s in STAGES if s != "pruned" or pruned]
    assert list(metrics["stages"]) == present
    whole = read(finished)["stages"]
    taken = {"dense", "pruned"} & set(present)
    assert metrics["seconds"].keys() == {*present, "evaluate", "total"} - taken
    for name in ("dense", "pruned")[: len(present) - 2]:
        assert metrics["stages"][name] == whole[name]
    assert metrics["encoder_params_ratio"] == pytest.approx(RATIO)
    assert metrics["stages"]["final"]["accuracy"] > 0.6
    logged = [row for row in log(tmp_path / "run") if row["stage"] == "tune" and "loss" in row]
    assert ("p" in logged[0]) == (recipe not in ("lpaf-without-step-3", "svd-ft"))
    assert weights(tmp_path / "run") != weights(finished)
    if recipe in ("lpaf-without-step-2", "svd-ft"):
        factors_are_a_plain_svd(tmp_path / "run")


def factors_are_a_plain_svd(run: Path) -> None:
    """Eckart and Young: nothing of this rank is nearer to the matrix."""
    source = run / "stages" / ("pruned" if (run / "stages" / "pruned").is_dir() else "dense")
    dense = load_file(source / "model.safetensors")
    factors = load_file(run / "stages" / "factorized" / "model.safetensors")
    for key in (key for key in factors if key.endswith("down.weight")):
        place = key.removesuffix("down.weight")
        w = dense[f"{place}weight"].astype(np.float64)
        product = factors[f"{place}up.weight"].astype(np.float64) @ factors[key]
        least = np.linalg.norm(np.linalg.svd(w, compute_uv=False)[RANK:])
        assert np.linalg.norm(w - product) == pytest.approx(least, rel=1e-4)


@pytest.mark.usefixtures("no_latency")
def test_a_model_that_is_tuned_already_is_taken_as_it_is(
    tiny: Tiny, finished: Path, tmp_path: Path
) -> None:
    source = finished / "stages" / "dense"
    changes = {"finetune_epochs": 0, "recipe": "svd-ft"}
    metrics = compress(**tiny.chosen(tmp_path / "run", model=source, **changes))
    assert metrics["stages"]["dense"] == read(finished)["stages"]["dense"]
    kept = parameters(load_model(tmp_path / "run" / "stages" / "dense"))
    given = parameters(load_model(source))
    assert kept.keys() == given.keys()
    assert all((np.asarray(kept[k]) == np.asarray(given[k])).all() for k in given)
    assert {row["stage"] for row in log(tmp_path / "run")} == {"tune"}


def test_the_classes_of_a_tuned_model_are_known_by_name(
    tiny: Tiny, finished: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(finished / "stages" / "dense", tmp_path / "model"))
    settings = make_settings(**tiny.chosen(tmp_path / "run", model=source, finetune_epochs=0))

    def head(names: list[str]) -> np.ndarray:
        config = json.loads((source / "config.json").read_text())
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        (source / "config.json").write_text(json.dumps(config))
        return np.asarray(fine_tuned(settings).classifier.kernel[...])

    given = np.asarray(load_model(source).classifier.kernel[...])
    np.testing.assert_array_equal(head(["NEGATIVE", "POSITIVE"]), given)
    np.testing.assert_array_equal(head(["Positive", "Negative"]), given[:, ::-1])
    np.testing.assert_array_equal(head(["LABEL_0", "LABEL_1"]), given)


def test_a_model_without_a_head_is_not_taken_as_tuned(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(LpafError, match="no classification head"):
        compress(**tiny.chosen(tmp_path / "run", finetune_epochs=0))


@pytest.mark.parametrize(
    ("chosen", "told", "missed"),
    [
        ({"params": RATIO}, f"rank {RANK} everywhere, keeps {100 * RATIO:.1f} % of the", None),
        ({"params": 1e-4}, "rank 1 everywhere, keeps 5.5 % of the", "0.01 % requested.*smallest"),
        ({"params": 0.09}, "rank 1 everywhere, keeps 5.5 % of the", "one rank is 5.5 %.*largest"),
        ({"params": None, "rank": 3}, "rank 3 everywhere, keeps 16.4 % of the", None),
    ],
)
def test_the_first_line_tells_the_share_that_is_reached(
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    chosen: dict[str, Any],
    told: str,
    missed: str | None,
) -> None:
    def stop(*_: Any) -> None:
        raise LpafError("enough")

    monkeypatch.setattr(pipeline, "do_step", stop)
    with pytest.raises(LpafError, match="enough"):
        compress(**tiny.chosen(tmp_path / "run", quiet=False, **chosen))
    first, *more = capsys.readouterr().err.splitlines()
    assert first.startswith("recipe lpaf: ")
    assert told in first
    assert len(more) == (missed is not None)
    assert missed is None or re.search(missed, more[0])


def test_a_rank_beyond_the_smallest_side_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(LpafError, match="rank 33 is more than 32"):
        compress(**tiny.chosen(tmp_path / "run", params=None, rank=33))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_training")
def test_a_wrong_input_costs_no_finished_run(tiny: Tiny, finished: Path, tmp_path: Path) -> None:
    run = cut_back(finished, tmp_path / "run")
    (run / "metrics.json").write_text("{}")
    before = files(run)
    for wrong in (
        {"rank": 33, "params": None},
        {"text_column": "review"},
        {"model": tmp_path / "none"},
    ):
        with pytest.raises(LpafError):
            compress(**tiny.chosen(run, force=True, seed=1, **wrong))
        assert files(run) == before


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("is_finished", [False, True])
def test_a_run_does_not_go_on_with_other_data(
    tiny: Tiny, finished: Path, tmp_path: Path, is_finished: bool
) -> None:
    run = cut_back(finished, tmp_path / "run")
    if is_finished:
        shutil.copyfile(finished / "metrics.json", run / "metrics.json")
    rows = tiny.data.read_text().splitlines(keepends=True)
    data = tmp_path / "task.csv"
    data.write_text("".join(rows[:-1]))
    begun = read(run, "settings.json") | {"task": str(data)}
    (run / "settings.json").write_text(json.dumps(begun))
    before = files(run)
    with pytest.raises(LpafError, match=r"task\.csv or .*bert has changed since"):
        compress(**tiny.chosen(run, task=data))
    assert files(run) == before
