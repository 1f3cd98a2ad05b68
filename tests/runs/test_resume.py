"""A run that was broken off and run again ends, to the last bit, as one that was not."""

import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from lpaf_jax import train
from lpaf_jax.checkpoints import checkpoint
from lpaf_jax.core.errors import LpafError
from lpaf_jax.runs import training
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.stages import FineTune, Prune
from lpaf_jax.train import Checkpoints, Stopwatch
from tests.tiny import Tiny, cut_back, weights

ROOT = Path(__file__).parents[2]

# Runs the command in a process that saves its state at every fifth step and kills itself, as a
# lost machine would, when `where` comes true.
DRIVER = '''
import functools, os, signal, sys
from lpaf_jax.cli import app as cli
from lpaf_jax.runs import training
from lpaf_jax.checkpoints import checkpoint
from lpaf_jax.core.progress import Progress
from lpaf_jax.train import Checkpoints, loop

class Waiting(Checkpoints):
    """What it has saved is on disk, so that a kill hits the same moment every time."""

    def save_if_due(self, state, **more):
        super().save_if_due(state, **more)
        self.close()

kind, stage, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
loop.LOG_EVERY = 5
training.Checkpoints = functools.partial(Waiting, every=0.0)
row, write = Progress.row, checkpoint.save_file

def logged(self, values):
    row(self, values)
    if kind == "row" and (values["stage"], values["step"]) == (stage, step):
        os.kill(os.getpid(), signal.SIGKILL)

def written(tensors, file, **more):
    write(tensors, file, **more)
    if kind == "save" and f".{stage}." in str(file):
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

Progress.row, checkpoint.save_file = logged, written
sys.exit(cli.main(sys.argv[4:]))
'''


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "logs" / "train.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def run_log(run: Path) -> str:
    return (run / "logs" / "run.log").read_text()


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds_per_step"}


def is_as_unbroken(run: Path, finished: Path) -> None:
    assert weights(run) == weights(finished)
    for stage in ("dense", "pruned", "factorized"):
        name = f"stages/{stage}/model.safetensors"
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    ours, theirs = (json.loads((f / "metrics.json").read_text()) for f in (run, finished))
    assert ours["stages"] == theirs["stages"]
    assert not (run / "checkpoints").exists()
    assert not list(run.rglob(".*"))
    told = [(r["stage"], r["step"], "loss" in r) for r in rows(run)]
    assert len(set(told)) == len(told)
    for stage in ("finetune", "prune", "tune"):
        steps = [step for name, step, _ in told if name == stage]
        assert steps == sorted(steps)
    found = dict(zip(told, map(timeless, rows(run)), strict=True))
    for row in rows(finished):
        assert found[row["stage"], row["step"], "loss" in row] == timeless(row)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(
    tiny: Tiny, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    state = run / "checkpoints"

    def go(kind: str, stage: str = "-", step: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", DRIVER, kind, stage, str(step)]
        return subprocess.run(
            [*command, *tiny.arguments(run, quiet=False)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    # During fine-tuning: the row of step 15 is written, the state of step 15 is not.
    assert go("row", "finetune", 15).returncode == -signal.SIGKILL
    assert {p.name for p in (state / "finetune").iterdir()} == {"10", "14"}
    damaged = state / "finetune" / "14"
    (damaged / "state" / "manifest.ocdbt").write_bytes(b"")
    # In the mixed part of tuning: all before it is done.
    second = go("row", "tune", 15)
    assert second.returncode == -signal.SIGKILL
    assert "fine-tune     goes on after step 10" in second.stderr
    assert {p.name for p in (run / "stages").iterdir()} == {"dense", "pruned", "factorized"}
    assert (state / "tune-mixed").is_dir()
    assert not (state / "tune-factors").exists()
    # In the part with the factors alone.
    third = go("row", "tune", 25)
    assert third.returncode == -signal.SIGKILL
    assert third.stderr.count("goes on after step") == 1
    assert "tune factors  goes on after step 14" in third.stderr
    assert "tune factors  p is 0: goes on with the factors alone" in third.stderr
    assert (state / "tune-factors" / "20").is_dir()
    # While the final model is being written.
    fourth = go("save", "model")
    assert fourth.returncode == -signal.SIGKILL
    assert "tune factors  goes on after step 20" in fourth.stderr
    assert "p is 0" not in fourth.stderr
    assert not (run / "model").exists()
    assert list(run.glob(".model.*"))
    last = go("none")
    assert last.returncode == 0, last.stderr
    # Between them, these two went through every stage.
    names = "dense|pruned|factorized|final|fine-tune|prune|tune factors|evaluate"
    told = rf"recipe lpaf: |stage [1-5] of 5: |({names}) |warning: fine-tuning has only "
    lines = (second.stderr + last.stderr).splitlines()
    (other,) = [line for line in lines if not re.match(told, line)]
    assert other == (
        f"warning: checkpoint {damaged} cannot be used (it is damaged: manifest.ocdbt has "
        "changed); trying the previous one"
    )
    for word in ("loss", "sparsity", "validation", "left", "p(dense branch) 0."):
        assert word in second.stderr
    assert "Report:" in last.stdout
    for stage in ("dense", "pruned", "factorized"):
        assert f"\n{stage} " not in last.stderr
    is_as_unbroken(run, finished)


@pytest.mark.slow
def test_a_recipe_without_pruning_goes_on_too(tiny: Tiny, finished: Path, tmp_path: Path) -> None:
    """`kfac-svd`: ranks by the loss from gradients, then plain tuning."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    chosen: dict[str, Any] = {"recipe": "kfac-svd", "reuse": finished}
    metrics = compress(**tiny.chosen(whole, **chosen))
    assert list(metrics["stages"]) == ["dense", "factorized", "final"]
    assert metrics["rank"] is None
    assert len(set(metrics["ranks"].values())) > 1
    for kind, stage, step in (("save", "factorized", 0), ("row", "tune", 15), ("none", "-", 0)):
        command = [sys.executable, "-c", DRIVER, kind, stage, str(step)]
        done = subprocess.run(
            [*command, *tiny.arguments(run, quiet=False, **chosen)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (0 if kind == "none" else -signal.SIGKILL), done.stderr
        assert (run / "stages" / "factorized").is_dir() == (kind != "save")
    assert "tune factors  goes on after step 14" in done.stderr
    assert weights(run) == weights(whole)
    again = json.loads((run / "metrics.json").read_text())
    assert (again["stages"], again["ranks"]) == (metrics["stages"], metrics["ranks"])


@pytest.fixture
def saves_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "Checkpoints", functools.partial(Checkpoints, every=0.0))


@pytest.mark.usefixtures("saves_always")
@pytest.mark.slow
def test_a_stage_that_diverges_stops_and_what_stood_before_it_serves(
    tiny: Tiny, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_back(finished, tmp_path / "run", "pruned", "factorized", "final")
    plain = train.task_loss

    def breaks_down(forward: Any, objective: Any) -> Any:
        def loss(params: Any, fixed: Any, batch: Any, keys: Any, step: Any) -> Any:
            value, logged = plain(forward, objective)(params, fixed, batch, keys, step)
            return jnp.where(step >= 14, jnp.nan, value), logged

        return loss

    long = Stopwatch()
    long.go_on_after(5000.0)
    with monkeypatch.context() as patch:
        patch.setattr(training, "Stopwatch", lambda: long)
        patch.setattr(train, "task_loss", breaks_down)
        with pytest.raises(LpafError, match=r"^stage prune: .* at step 15 of 28"):
            compress(**tiny.chosen(run))
    assert {p.name for p in (run / "stages").iterdir()} == {"dense"}
    assert (run / "checkpoints" / "prune" / "14").is_dir()
    assert not (run / "metrics.json").exists()
    assert "ERROR lpaf_jax: stage prune: training diverged" in run_log(run)
    found = compress(**tiny.chosen(run))
    assert 5000 < found["seconds"]["pruned"] < found["seconds"]["total"]
    assert "prune         goes on after step 14" in run_log(run).split("training diverged")[1]
    is_as_unbroken(run, finished)


def test_a_full_disk_costs_the_stage_at_work_and_no_other(
    tiny: Tiny, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_back(finished, tmp_path / "run", "factorized", "final")

    def full(tensors: Any, file: Path, **_: Any) -> None:
        Path(file).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(LpafError, match="No space left on device") as caught:
            compress(**tiny.chosen(run))
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in (run / "stages").iterdir()) == ["dense", "pruned"]
    for done in (FineTune, Prune):
        monkeypatch.setattr(done, "run", None)
    compress(**tiny.chosen(run))
    is_as_unbroken(run, finished)
