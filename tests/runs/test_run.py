import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lpaf_jax.core.errors import LpafError
from lpaf_jax.runs import run as run_module
from lpaf_jax.runs.run import Fingerprint, Run
from lpaf_jax.runs.settings import PRESETS, Settings, make_settings

MADE = ["analysis.json", "checkpoints", "logs", "memory.json", "metrics.json", "model"]
MADE += ["report.html", "seconds.json", "settings.json", "stages"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def settings(out: Path, **chosen: Any) -> Settings:
    return make_settings("minilm", task="sst2", out=out, **chosen)


def begin(chosen: Settings, fingerprint: Fingerprint = "f") -> Run:
    run = Run(chosen)
    with run.opened(fingerprint):
        pass
    return run


def add_stage(run: Run, name: str) -> None:
    run.stage(name).mkdir(parents=True)
    (run.stage(name) / "config.json").write_text(json.dumps({"stage": name}))
    save_file({name: np.ones(3)}, run.stage(name) / "model.safetensors")
    run.note_seconds(name, 2.5)
    run.note_memory(name, 10**9)
    log = run.folder / "logs" / "train.jsonl"
    logged = {"dense": "finetune", "pruned": "prune"}.get(name, "tune")
    with log.open("a") as file:
        file.write(json.dumps({"stage": logged, "step": 10}) + "\n")


def whole_run(chosen: Settings) -> Run:
    """A folder that holds a name of everything a run makes."""
    run = begin(chosen)
    for name in ("dense", "pruned", "factorized", "final"):
        add_stage(run, name)
    run.checkpoint("tune").mkdir(parents=True)
    for name in ("analysis.json", "metrics.json"):
        (run.folder / name).write_text('{"stages": {}}')
    (run.folder / "report.html").write_text("page")
    assert names(run.folder) == MADE
    return run


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_nothing_is_written_before_the_run_is_opened(out: Path) -> None:
    run = Run(settings(out))
    assert not out.exists()
    with run.opened("f"):
        assert (out / "settings.json").is_file()
    assert names(out) == ["logs", "settings.json"]


def test_the_same_run_goes_on_and_keeps_its_settings(out: Path) -> None:
    whole_run(settings(out, preset="quick"))
    before = contents(out)
    values = PRESETS["quick"]  # a preset is nothing but its values
    again = begin(settings(out, quiet=True, keep="final", reuse=out, force=True, **values))
    assert again.finished() == {"stages": {}}
    assert contents(out) == before


def test_a_run_of_before_a_setting_was_there_goes_on_at_its_default(out: Path) -> None:
    whole_run(settings(out))
    values = json.loads((out / "settings.json").read_text())
    del values["regression"], values["doc_stride"]
    (out / "settings.json").write_text(json.dumps(values))
    assert begin(settings(out)).finished() == {"stages": {}}
    with pytest.raises(LpafError, match="doc_stride 128 there, 64 now"):
        Run(settings(out, doc_stride=64))
    other = begin(settings(out.parent / "b", reuse=out))
    assert other.take_over("dense") is None


def test_another_run_is_refused_with_what_differs(out: Path) -> None:
    whole_run(settings(out, seed=0))
    before = contents(out)
    with pytest.raises(LpafError) as caught:
        Run(settings(out, seed=1, recipe="svd-ft"))
    message = str(caught.value)
    assert "seed 0 there, 1 now" in message
    assert "recipe 'lpaf' there, 'svd-ft' now" in message
    assert "--force" in message
    assert "params" not in message
    assert "\n" not in message
    assert contents(out) == before


def test_force_deletes_what_a_run_made_and_nothing_else(out: Path) -> None:
    whole_run(settings(out))
    (out / "notes.txt").write_text("mine")
    (out / "logs" / "mine.log").write_text("mine")
    run = Run(settings(out, seed=1, force=True))
    assert (out / "metrics.json").is_file()  # inputs are read before: they may be wrong
    with run.opened("f"):
        assert run.finished() is None
    assert names(out) == ["logs", "notes.txt", "settings.json"]
    assert names(out / "logs") == ["mine.log", "run.log"]
    assert json.loads((out / "settings.json").read_text())["seed"] == 1


def test_force_starts_anew_where_what_the_run_read_has_changed(out: Path) -> None:
    whole_run(settings(out))
    with pytest.raises(LpafError, match="other data or weights.*--force"):
        begin(settings(out), "g")
    assert (out / "metrics.json").is_file()
    begin(settings(out, force=True), "g")
    assert not (out / "metrics.json").exists()
    assert json.loads((out / "settings.json").read_text())["fingerprint"] == "g"


def test_what_the_run_read_that_has_changed_is_named(out: Path, tmp_path: Path) -> None:
    one, other = ({"whole": x, "weights": x, "test examples": "e"} for x in "fg")
    begin(settings(out), one)
    with pytest.raises(LpafError, match=r"started with other data or weights \(weights\): "):
        begin(settings(out), other)
    begin(settings(out), one)
    reusing = begin(settings(tmp_path / "reusing", reuse=out), other)
    add_stage(Run(settings(out)), "dense")
    assert reusing.take_over("dense") == "other weights"


def test_a_run_of_an_earlier_version_noted_the_whole_alone(out: Path) -> None:
    begin(settings(out), "f")
    parts = {"weights": "w"}
    begin(settings(out), {"whole": "f", **parts})
    with pytest.raises(LpafError, match="started with other data or weights: "):
        begin(settings(out), {"whole": "g", **parts})


def test_a_disk_too_full_for_the_run_is_told_before_it_begins(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "free_bytes", lambda path: 2_000_000_000)
    with (
        pytest.raises(LpafError, match=r"2\.0 GB free.*may need 2\.5 GB"),
        Run(settings(out)).opened("f", needs=2_500_000_000),
    ):
        pytest.fail("the work began")
    assert not out.exists()
    with Run(settings(out)).opened("f", needs=1_500_000_000):
        pass


def test_force_that_fails_half_way_leaves_no_finished_run(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_run(settings(out))

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(LpafError, match="cannot be cleared.*Permission denied"):
            begin(settings(out, seed=1, force=True))
    assert not (out / "metrics.json").exists()
    begin(settings(out, seed=1, force=True))
    assert names(out) == ["logs", "settings.json"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("text", [None, '{"editor.fontSize": 12}', "[1]"])
def test_a_folder_of_somebody_else_is_left_alone(out: Path, text: str | None, force: bool) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    if text is not None:
        (out / "settings.json").write_text(text)
    before = contents(out)
    with pytest.raises(LpafError, match=r"not empty.*(thesis|settings)"):
        Run(settings(out, force=force))
    assert contents(out) == before


def test_settings_that_are_no_json_are_named(out: Path) -> None:
    begin(settings(out))
    (out / "settings.json").write_text('{"model": ')
    with pytest.raises(LpafError, match=r"settings\.json cannot be read.*or delete .*run$"):
        Run(settings(out))


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"stages": '])
def test_metrics_that_are_no_figures_are_told_with_the_mend(out: Path, text: str) -> None:
    run = whole_run(settings(out))
    (out / "metrics.json").write_text(text)
    with pytest.raises(LpafError, match=r"metrics\.json (cannot|does not).*; delete it and run"):
        run.finished()


def test_a_finished_run_without_its_model_is_not_taken_for_finished(out: Path) -> None:
    run = whole_run(settings(out))
    weights = out / "model" / "model.safetensors"
    weights.write_bytes(b"garbage")
    mend = rf"; delete {out}/metrics\.json and {out}/model and run the same command again"
    with pytest.raises(LpafError, match=rf"model\.safetensors is damaged.*{mend}"):
        run.finished()
    weights.unlink()
    with pytest.raises(LpafError, match=rf"has no model\.safetensors{mend}"):
        run.finished()
    (out / "metrics.json").unlink()
    shutil.rmtree(out / "model")
    assert run.finished() is None
    assert not run.is_done("final")


def test_hidden_files_and_the_logs_of_a_run_killed_at_once_do_not_count(out: Path) -> None:
    (out / "logs").mkdir(parents=True)
    (out / "logs" / "run.log").touch()
    (out / ".settings.json.123.tmp").touch()
    begin(settings(out))
    assert (out / "settings.json").is_file()


def test_a_file_is_no_folder(out: Path) -> None:
    out.touch()
    with pytest.raises(LpafError, match="is a file"):
        Run(settings(out))
    run = Run(settings(out / "below"))
    with pytest.raises(LpafError, match=r"below cannot be written: Not a directory"):
        run.opened("f").__enter__()


def test_a_folder_without_permission_is_named(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere
    with pytest.raises(LpafError, match=r"--out .*run cannot be written: Permission denied$"):
        begin(settings(out))


def test_two_processes_do_not_share_a_folder(out: Path) -> None:
    with Run(settings(out)).opened("f"):
        with pytest.raises(LpafError, match="another process"):
            begin(settings(out))
        with pytest.raises(LpafError, match="another process"):
            begin(settings(out, seed=1, force=True))
        assert json.loads((out / "settings.json").read_text())["seed"] == 0
    begin(settings(out))


def test_other_data_under_the_same_name_is_another_run(out: Path) -> None:
    begin(settings(out), "one")
    with pytest.raises(LpafError, match=r"sst2 or minilm has changed"):
        begin(settings(out), "two")
    begin(settings(out), "one")


def test_a_stage_is_done_once_it_is_whole(out: Path) -> None:
    run = begin(settings(out))
    run.stage("dense").mkdir(parents=True)
    assert not run.is_done("dense")
    add_stage(run, "pruned")
    add_stage(run, "final")
    assert [run.is_done(n) for n in ("dense", "pruned", "final")] == [False, True, True]
    place = run.stage("pruned")
    os.truncate(place / "model.safetensors", 20)
    with pytest.raises(LpafError, match=rf"damaged.*; delete {place} and run the same command"):
        run.is_done("pruned")


def test_finished_stages_of_the_same_settings_are_taken_over(out: Path) -> None:
    other = whole_run(settings(out / "a"))
    again = {"params": 0.2, "tune_epochs": 1, "recipe": "lpaf-without-step-3"}
    run = begin(settings(out / "b", reuse=out / "a", **again))
    for name in ("dense", "pruned"):
        assert not run.is_done(name)
        assert run.take_over(name) is None
        assert run.is_done(name)
        assert contents(run.stage(name)) == contents(other.stage(name))
    assert run.seconds() == {}  # they cost this run nothing
    rows = (run.folder / "logs" / "train.jsonl").read_text().splitlines()
    assert [json.loads(r)["stage"] for r in rows] == ["finetune", "prune"]
    assert run.take_over("factorized") is not None
    assert names(run.folder / "stages") == ["dense", "pruned"]


@pytest.mark.parametrize(
    ("change", "dense", "pruned"),
    [
        ({"seed": 1}, "seed", "seed"),
        ({"finetune_epochs": 1.0}, "finetune_epochs", "finetune_epochs"),
        ({"batch": 8}, "batch", "batch"),
        ({"limit": 9}, "limit", "limit"),
        ({"warmup": 0.2}, "warmup", "warmup"),
        ({"kept": 0.4, "prune_lr": 1e-3}, None, "kept, prune_lr"),
        ({"criterion": "magnitude"}, None, "criterion"),
        ({"cooldown": 0.2}, None, "cooldown"),
        ({"rank": 3, "solver": "column", "p_init": 0.1, "tune_lr": 1e-3}, None, None),
    ],
)
def test_stages_of_other_settings_are_not_taken_over(
    out: Path, change: dict[str, Any], dense: str | None, pruned: str | None
) -> None:
    whole_run(settings(out / "a", finetune_epochs=2.0, prune_epochs=1.5))
    chosen = {"finetune_epochs": 2.0, "prune_epochs": 1.5} | change
    run = begin(settings(out / "b", reuse=out / "a", **chosen))
    for name, differing in (("dense", dense), ("pruned", pruned)):
        reason = run.take_over(name)
        assert reason == (f"other {differing}" if differing else None)
        assert run.is_done(name) == (not differing)
        # Memory is the same wherever it was made; the time was not spent here.
        assert (name in run.memory()) == (not differing)
        assert name not in run.seconds()


def test_stages_of_other_data_or_missing_ones_are_not_taken_over(out: Path) -> None:
    other = whole_run(settings(out / "a"))
    run = begin(settings(out / "b", reuse=out / "a"), "other data")
    assert run.take_over("dense") == "other fingerprint"
    shutil.rmtree(other.stage("pruned"))
    assert "does not contain it" in str(run.take_over("pruned"))
    same = begin(settings(out / "c", reuse=out / "a"))
    os.truncate(other.stage("dense") / "model.safetensors", 20)
    assert "safetensors is damaged" in str(same.take_over("dense"))
    assert not same.is_done("dense")
    assert names(run.folder) == ["logs", "settings.json"]


def test_a_folder_to_reuse_must_hold_a_run(out: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(LpafError, match="--reuse .* holds no run"):
            Run(settings(out, reuse=folder))


def test_the_runs_of_a_comparison_lend_too(out: Path) -> None:
    whole_run(settings(out / "a/runs/svd-ft-0.5-0"))
    with pytest.raises(LpafError, match="holds no run"):
        Run(settings(out / "b", reuse=out / "a"))
    (out / "a/compare.json").write_text("{}")
    (out / "a/runs/bare").mkdir()  # one that has only its final model
    assert begin(settings(out / "b", reuse=out / "a")).take_over("dense") is None


def test_a_comparison_that_kept_no_stages_is_refused(out: Path) -> None:
    (out / "a/runs/svd-ft-0.5-0").mkdir(parents=True)
    (out / "a/compare.json").write_text("{}")
    with pytest.raises(LpafError, match="has no stages left.*--keep all"):
        Run(settings(out / "b", reuse=out / "a"))


def test_a_copy_that_fails_leaves_no_stage(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_run(settings(out / "a"))
    run = begin(settings(out / "b", reuse=out / "a"))

    def full(source: Path, target: Path, **_: Any) -> None:
        (target / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(LpafError, match="No space left"):
        run.take_over("dense")
    assert not run.is_done("dense")
    assert names(run.folder / "stages") == []


def test_tidy_keeps_the_stages_unless_only_the_final_one_is_wanted(out: Path) -> None:
    run = whole_run(settings(out))
    run.tidy()
    assert names(out) == [n for n in MADE if n != "checkpoints"]
    Run(settings(out, keep="final")).tidy()
    assert names(out) == [n for n in MADE if n not in ("checkpoints", "stages")]
    assert run.is_done("final")
