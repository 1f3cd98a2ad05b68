import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.core.progress import Progress, borrow_rows, read_rows
from tests.terminal import Terminal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def row(stage: str = "prune", step: int = 10, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "step": step, "steps": 40, "loss": 0.5, "seconds_per_step": 2.0} | more


def logged(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / "logs" / "train.jsonl").read_text().splitlines()
    return [(r["stage"], r["step"]) for r in map(json.loads, lines)]


def test_a_row_is_kept_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = row(sparsity=0.25, p=0.125, lr=1e-5)
    Progress(folder, quiet=False).row(given)
    assert read_rows(folder / "logs" / "train.jsonl") == [given]
    out, err = capsys.readouterr()
    assert out == ""
    words = err.split()
    assert words[:5] == ["prune", "step", "10/40", "loss", "0.500"]
    assert "sparsity 25%" in err
    assert "p(dense branch) 0.12" in err
    assert "1:00 left" in err  # thirty steps of two seconds


def test_a_long_wait_is_told_in_hours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Progress(folder, quiet=False).row(row(seconds_per_step=125.5))
    assert "1:02:45 left" in capsys.readouterr().err


def test_without_a_pace_no_time_is_guessed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = row()
    del given["seconds_per_step"]
    Progress(folder, quiet=False).row(given)
    assert "left" not in capsys.readouterr().err


def test_a_stage_says_that_it_compiles(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(folder, quiet=False)
    progress.begin("prune", 0)
    assert "prune         compiles its first steps" in capsys.readouterr().err
    progress.begin("prune", 20)
    assert "prune         goes on after step 20; compiles" in capsys.readouterr().err
    progress.begin("tune", 20, alone=True)
    said = capsys.readouterr().err
    assert said == "tune factors  p is 0: goes on with the factors alone; compiles again\n"


def test_batches_of_an_evaluation_are_told_now_and_then_and_to_the_end(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(folder, quiet=False)
    for done in range(1, 4):
        progress.batch("dense model", done, 3)
    told = "evaluate      dense model: batch"
    assert capsys.readouterr().err == f"{told} 1/3\n{told} 3/3\n"
    for done in range(1, 4):  # too short to be told of
        progress.batch("final model", done, 3)
    assert capsys.readouterr().err == ""


def test_validation_is_told_as_a_share(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(folder, quiet=False)
    progress.row({"stage": "tune", "step": 8, "validation_accuracy": 0.875})
    assert "step 8: validation 87.5%" in capsys.readouterr().err


def test_a_file_gets_few_lines_and_always_the_last(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(folder, quiet=False)
    for step in range(1, 41):
        progress.row(row(step=step))
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == ["1/40", "40/40"]
    assert len(logged(folder)) == 40
    progress.begin("tune", 0)
    progress.row(row("tune"))
    assert "step 10/40" in capsys.readouterr().err


def test_quiet_prints_nothing_and_keeps_the_rows(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal.put_in(monkeypatch)
    progress = Progress(folder, quiet=True)
    with caplog.at_level(logging.INFO, logger="lpaf_jax"):
        progress.say("hello 100%s")
    assert caplog.messages == ["hello 100%s"]
    progress.row(row(step=40))
    progress.row({"stage": "prune", "step": 40, "validation_accuracy": 0.5})
    progress.begin("prune", 40)
    progress.close()
    assert capsys.readouterr() == ("", "")
    assert terminal.getvalue() == ""
    assert len(logged(folder)) == 2


@pytest.mark.parametrize("text", ["[/red] of [bold]", "runs/[a]/b [/]", "a:smile:b"])
def test_names_are_printed_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    Progress(folder, quiet=False).say(text)
    assert capsys.readouterr().err == f"{text}\n"


def test_a_warning_stays_on_the_screen_and_in_the_log(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Progress(folder, quiet=False).warn("a state is lost")
    Progress(folder, quiet=True).warn("another")
    assert capsys.readouterr().err == "warning: a state is lost\n"
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "a state is lost"),
        ("WARNING", "another"),
    ]


def test_a_stage_that_goes_on_drops_what_it_will_log_again(folder: Path) -> None:
    progress = Progress(folder, quiet=True)
    for stage in ("finetune", "prune"):
        for step in (10, 20, 30):
            progress.row(row(stage, step))
        progress.row({"stage": stage, "step": 30, "validation_accuracy": 0.5})
    with (folder / "logs" / "train.jsonl").open("a") as file:
        file.write('{"stage": "prune", "st')  # killed here
    progress.begin("prune", 20)
    whole = [("finetune", 10), ("finetune", 20), ("finetune", 30), ("finetune", 30)]
    assert logged(folder) == [*whole, ("prune", 10), ("prune", 20)]
    progress.begin("prune", 0)
    assert logged(folder) == whole
    progress.row(row("prune", 10))
    assert logged(folder) == [*whole, ("prune", 10)]


def test_a_run_without_a_log_begins_one(folder: Path) -> None:
    progress = Progress(folder, quiet=True)
    progress.begin("finetune", 0)
    progress.row(row("finetune"))
    assert logged(folder) == [("finetune", 10)]


def test_rows_of_one_stage_are_borrowed_once(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "logs").mkdir(parents=True)
    for stage in ("finetune", "prune", "tune"):
        Progress(other, quiet=True).row(row(stage))
    for _ in range(2):
        borrow_rows(other, folder, "prune")
    assert logged(folder) == [("prune", 10)]
    borrow_rows(tmp_path / "none", folder, "finetune")
    assert logged(folder) == [("prune", 10)]
