import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax import __version__
from lpaf_jax.cli import main
from lpaf_jax.core.progress import Progress
from lpaf_jax.recipes import make_recipe
from lpaf_jax.report import cautions, model_card
from lpaf_jax.runs.settings import PRESETS
from lpaf_jax.stages import FineTune
from lpaf_jax.tasks.options import Options
from tests.tiny import Tiny, cut_back, sentences, write_model, write_table

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]
OTHERS = ("evaluate", "predict", "inspect", "bench", "analyze", "export", "report")
COMPRESS = "compress minilm --task sst2 --out x"


def lpaf(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lpaf_jax.cli", *map(str, words)]
    pipe = subprocess.PIPE
    given = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "text": True, "cwd": ROOT} | options
    return subprocess.Popen(command, **given)


def is_one_clear_line(captured: Any) -> str:
    assert captured.out == ""
    assert re.fullmatch(r"lpaf: error: [^\n]+\n", captured.err), captured.err
    assert "Traceback" not in captured.err
    return str(captured.err)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("training was begun")

    monkeypatch.setattr(FineTune, "run", refuse)


# Each makes an argument wrong, in its own folder, and says what the message must name.
def unknown_model(folder: Path) -> tuple[dict[str, Any], str]:
    return {"model": "maxilm"}, "unknown model 'maxilm'"


def missing_model(folder: Path) -> tuple[dict[str, Any], str]:
    return {"model": folder / "none"}, "none does not exist"


def nan_in_weights(folder: Path) -> tuple[dict[str, Any], str]:
    model = write_model(folder / "nan")
    tensors = load_file(model / "model.safetensors")
    tensors["pooler.dense.weight"] = np.full_like(tensors["pooler.dense.weight"], np.nan)
    save_file(tensors, model / "model.safetensors")
    return {"model": model}, "pooler.dense.weight contains NaN"


def cut_off_weights(folder: Path) -> tuple[dict[str, Any], str]:
    model = write_model(folder / "cut")
    os.truncate(model / "model.safetensors", 5000)
    return {"model": model}, "model.safetensors is damaged"


def unknown_task(folder: Path) -> tuple[dict[str, Any], str]:
    return {"task": "rotten_apples"}, "unknown task 'rotten_apples'"


def missing_file(folder: Path) -> tuple[dict[str, Any], str]:
    return {"task": folder / "none.csv"}, "none.csv"


def unknown_column(folder: Path) -> tuple[dict[str, Any], str]:
    return {"text_column": "review"}, "no column 'review'"


def no_rows(folder: Path) -> tuple[dict[str, Any], str]:
    return {"task": write_table(folder / "none.tsv", [])}, "no rows"


def nothing_at_all(folder: Path) -> tuple[dict[str, Any], str]:
    (folder / "void.csv").touch()
    return {"task": folder / "void.csv"}, "void.csv is empty"


def one_class(folder: Path) -> tuple[dict[str, Any], str]:
    rows = [(text, "good") for text, _ in sentences(40)]
    return {"task": write_table(folder / "one.csv", rows)}, "only one class ('good')"


def no_share(folder: Path) -> tuple[dict[str, Any], str]:
    return {"params": 0}, "params is 0"


def more_than_all(folder: Path) -> tuple[dict[str, Any], str]:
    return {"params": 1.5}, "params is 1.5"


def long_text(folder: Path) -> tuple[dict[str, Any], str]:
    return {"length": 64}, "length is 64"


def file_for_a_folder(folder: Path) -> tuple[dict[str, Any], str]:
    (folder / "file").touch()
    return {"out": folder / "file"}, "is a file"


def unwritable_folder(folder: Path) -> tuple[dict[str, Any], str]:
    (folder / "file").touch()
    return {"out": folder / "file" / "run"}, "cannot be written"


def foreign_folder(folder: Path) -> tuple[dict[str, Any], str]:
    (folder / "thesis.tex").touch()
    return {"out": folder}, "it holds thesis.tex"


def no_run_to_reuse(folder: Path) -> tuple[dict[str, Any], str]:
    return {"reuse": folder}, "holds no run"


MISTAKES = [
    *(unknown_model, missing_model, nan_in_weights, cut_off_weights),
    *(unknown_task, missing_file, unknown_column, no_rows, nothing_at_all, one_class),
    *(no_share, more_than_all, long_text),
    *(file_for_a_folder, unwritable_folder, foreign_folder, no_run_to_reuse),
]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__)
def test_a_mistake_is_one_line_and_costs_no_work(
    tiny: Tiny,
    tmp_path: Path,
    capsys: Capture,
    mistake: Callable[[Path], tuple[dict[str, Any], str]],
) -> None:
    changes, named = mistake(tmp_path)
    held = sorted(tmp_path.rglob("*"))
    assert main(tiny.arguments(changes.pop("out", tmp_path / "run"), **changes)) == 2
    assert named in is_one_clear_line(capsys.readouterr())
    assert sorted(tmp_path.rglob("*")) == held


@pytest.mark.usefixtures("no_training")
def test_the_folder_of_another_run_is_one_line(tiny: Tiny, finished: Path, capsys: Capture) -> None:
    assert main(tiny.arguments(finished, seed=1)) == 2
    assert "seed 0 there, 1 now" in is_one_clear_line(capsys.readouterr())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": "none.tsv"}, "none.tsv"),
        ({"text-column": "review"}, "no column 'review'"),
        ({"label-column": "class"}, "no column 'class'"),
        ({"length": 99}, "length is 99"),
        ({"batch": 0}, "batch is 0"),
        ({"stage": "pruned", "dir": "nowhere"}, "nowhere does not exist"),
        ({"stage": "pruned", "dir": "model"}, "model is a model and has no stages"),
        ({"pair-column": "label"}, "leave --pair-column label out"),
    ],
)
def test_a_mistake_in_what_to_evaluate_is_one_line(
    tiny: Tiny, finished: Path, capsys: Capture, changes: dict[str, Any], named: str
) -> None:
    chosen = {"data": tiny.data} | changes
    folder = finished / chosen.pop("dir", "")
    words = [str(w) for name, value in chosen.items() for w in (f"--{name}", value)]
    assert main(["evaluate", str(folder), *words]) == 2
    assert named in is_one_clear_line(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", "{compress, compare, recipes, evaluate, predict, generate, inspect, bench, analyze"),
        ("frobnicate", "Unrecognized options: frobnicate"),
        ("compress", "Missing from lpaf compress: MODEL --out DIR"),
        (f"{COMPRESS} --epochs 3", "recipe lpaf has no option --epochs;"),
        (f"{COMPRESS} --solver exact", "--solver 'exact' is unknown: choose one of plain,"),
        (f"{COMPRESS} --batch many", "error: --batch is 'many', but must be a whole number;"),
        (f"{COMPRESS} --rank 5.5", "error: --rank is '5.5', but must be a whole number;"),
        (f"{COMPRESS} --score-decay x", "error: --score-decay is 'x', but must be a number;"),
        (f"{COMPRESS} --finetune-lr 2", "error: --finetune-lr is 2.0, but must be in (0, 1)"),
        (f"{COMPRESS} --rank 5 --params 0.5", "error: --params and --rank both"),
        (f"{COMPRESS} --preset", "--preset"),
        (f"{COMPRESS} --preset fast", "'fast' for argument '--preset'"),
        ("evaluate x", "Missing from lpaf evaluate: --data FILE"),
        ("evaluate x --data y.csv --one-shot", "Unrecognized options: --one-shot"),
        ("inspect x --one-shot", "Unrecognized options: --one-shot"),
        ("export x --out y --format best", "'best' for argument '--format'"),
    ],
)
def test_words_that_are_no_command_are_refused(words: str, wanted: str, capsys: Capture) -> None:
    assert main(words.split()) == 2
    assert wanted in is_one_clear_line(capsys.readouterr())


@pytest.mark.parametrize("command", [None, "compress", *OTHERS])
def test_help_fits_a_terminal_and_names_every_option(
    command: str | None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"] if command else ["--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    body = [line for line in out.splitlines() if not line.startswith("usage:")]
    assert max(map(len, body)) <= 80
    assert "None" not in out
    assert "STR" not in out
    assert not re.search(r"--no-\w", out)
    usual = make_recipe("lpaf").settings()
    if command == "compress":
        for name in [f.name for f in dataclasses.fields(Options)] + list(usual):
            if name != "model":
                assert f"--{name.replace('_', '-')}" in out
    else:
        assert "DIR" in out or command is None


@pytest.mark.parametrize("words", [["--preset", "paper"], ["--preset=paper"]])
def test_help_shows_the_defaults_of_the_preset(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["compress", *words, "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, value in PRESETS["paper"].items():
        flag = f"--{name.replace('_', '-')}"
        assert re.search(rf"{flag} (?:(?! --).)*\(default: {re.escape(str(value))}\)", out), name


def test_flags_left_out_have_the_values_of_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    from lpaf_jax.cli import app as cli

    found: list[Any] = []
    monkeypatch.setattr(cli, "_compress", found.append)
    words = ["compress", "minilm", "--task", "sst2", "--out", "x", "--kept", "0.2"]
    for name, values in PRESETS.items():
        assert main([*words, "--preset", name]) == 0
        given = dataclasses.asdict(found.pop())
        expected = make_recipe("lpaf").settings() | values | {"kept": 0.2, "preset": name}
        assert {key: given[key] for key in expected} == expected


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lpaf {__version__}\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "lpaf --version" in capsys.readouterr().out


def test_a_finished_run_prints_its_results(tiny: Tiny, finished: Path, capsys: Capture) -> None:
    assert main(tiny.arguments(finished, quiet=False)) == 0
    out, err = capsys.readouterr()
    metrics = json.loads((finished / "metrics.json").read_text())
    for stage in ("Dense", "Pruned", "Factorized", "Final"):
        assert stage in out
    assert f"{100 * metrics['stages']['final']['accuracy']:.1f}" in out
    assert out.splitlines()[-1] == f"Report: {finished / 'report.html'}"
    assert err == f"{finished} is already finished; nothing to do\n"


def test_the_results_come_with_the_cautions_of_the_card(
    tiny: Tiny, finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["stages"]["final"]["accuracy"] = metrics["stages"]["dense"]["accuracy"] = 0.25
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert main(tiny.arguments(run, quiet=False)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "no better than always answering the most common class" in out
    notes = cautions(metrics)
    assert all(f"Caution: {note}" in out and note in model_card(metrics) for note in notes)


def test_quiet_is_quiet(tiny: Tiny, finished: Path, tmp_path: Path) -> None:
    run = cut_back(finished, tmp_path / "run")
    process = lpaf(*tiny.arguments(run, quiet=True))
    assert process.communicate() == ("", "")
    assert process.returncode == 0
    assert (run / "metrics.json").is_file()


def test_evaluate_prints_one_object_with_the_figures_of_the_run(
    finished: Path, held_out: Path
) -> None:
    process = lpaf("evaluate", finished, "--data", held_out, "--stage", "factorized")
    out, err = process.communicate()
    assert process.returncode == 0
    assert out.count("\n") == 1
    lines = [re.fullmatch(rf"evaluate +{held_out}: batch (\d+)/(\d+)", x) for x in err.splitlines()]
    told = [(int(line[1]), int(line[2])) for line in lines if line]
    assert len(told) == len(lines), err
    assert told[0][0] == 1  # and where batches are slow some before the last
    assert told[-1][0] == told[-1][1]
    metrics = json.loads((finished / "metrics.json").read_text())
    assert json.loads(out) == metrics["stages"]["factorized"]


def test_predict_labels_every_line_there_is(
    finished: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["the warm film is a very lovely tale .", "", "  ", "漢字\twith\ttabs 🙂", "no newline"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(given)))
    assert main(["predict", str(finished), "--batch", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = [line.split("\t", 2) for line in out.split("\n")[:-1]]
    assert [text for _, _, text in rows] == given
    assert rows[0][0] == "positive"
    assert all(label in ("negative", "positive") for label, _, _ in rows)
    assert all(0.5 <= float(probability) <= 1 for _, probability, _ in rows)


def test_predict_answers_while_it_is_asked_and_stops_with_its_reader(finished: Path) -> None:
    environment = os.environ | {"LC_ALL": "C"}
    with lpaf("predict", finished, "--batch", "1", text=False, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"a clever plot \xff and \xc3\xa9\n")  # a byte that is no text, and é
        process.stdin.flush()
        label, _, text = process.stdout.readline().rstrip(b"\n").split(b"\t")
        assert label in (b"negative", b"positive")
        assert text.decode() == "a clever plot � and é"
        process.stdout.close()
        process.stdin.write(b"is anybody there\n")
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_a_line(
    tiny: Tiny,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    def stop(*_: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)  # the handler ends it
        raise AssertionError("not stopped")

    monkeypatch.setattr(FineTune, "run", stop)
    before = signal.getsignal(signal.SIGTERM)
    # A shell starts its background jobs, and so perhaps these tests, with SIGINT ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(tiny.arguments(tmp_path / "run")) == code
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert signal.getsignal(signal.SIGTERM) is before
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"lpaf: (interrupted|terminated); run the same command again .*\n", err)
    assert not (tmp_path / "run" / "stages" / "dense").exists()


def test_a_disk_that_fills_up_under_the_log_is_one_line(
    tiny: Tiny, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Progress, "begin", full)
    assert main(tiny.arguments(tmp_path / "run")) == 2
    assert "No space left" in is_one_clear_line(capsys.readouterr())


def test_a_defect_keeps_its_traceback(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(FineTune, "run", broken)
    with pytest.raises(ValueError, match="a defect"):
        main(tiny.arguments(tmp_path / "run"))
