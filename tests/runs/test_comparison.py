import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json
from lpaf_jax.recipes import Recipe, make_recipe
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.cells import about, command, plan
from lpaf_jax.runs.comparison import compare
from lpaf_jax.stages import Factorize, FineTune
from tests.tiny import Tiny
from tests.tiny_decoder import write_decoder, write_text

SHARED: dict[str, Any] = {
    "finetune_epochs": 2.0,
    "tune_epochs": 1.0,
    "batch": 8,
    "length": 16,
    "quiet": True,
}
RECIPES = ("svd-ft", "svd")


def chosen(tiny: Tiny, out: Path, **changes: Any) -> dict[str, Any]:
    given = {"model": tiny.model, "task": tiny.data, "out": out, "recipes": RECIPES, **SHARED}
    return given | changes


@pytest.fixture(scope="module")
def compared(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison, its stages kept. Read it, copy it, never change it."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    compare(**chosen(tiny, folder, keep="all", tune_epochs=0.5))
    return folder


def own(tiny: Tiny, folder: Path, **changes: Any) -> dict[str, Any]:
    return chosen(tiny, folder, tune_epochs=0.5, **changes)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is to be run")


def test_every_cell_is_an_ordinary_run_beside_the_others(compared: Path) -> None:
    found = read_json(compared / "compare.json")
    assert [(r["recipe"], r["params"], r["seed"]) for r in found["rows"]] == [
        ("svd-ft", 0.5, 0),
        ("svd", 0.5, 0),
    ]
    assert found["baseline"] == "svd-ft"
    assert found["failed"] == []
    assert found["missing"] == 0
    assert "--recipes svd-ft svd --params 0.5 --seeds 0" in found["command"]
    for row in found["rows"]:
        metrics = read_json(compared / "runs" / f"{row['recipe']}-0.5-0" / "metrics.json")
        final = metrics["stages"]["final"]
        assert row["final"] == final["accuracy"]
        assert row["interval"] == final["interval95"]
        # svd does not tune, whatever --tune-epochs says to those that do.
        before = "factorized" if row["recipe"] == "svd-ft" else "final"
        assert row["before_tuning"] == metrics["stages"][before]["accuracy"]
        assert row["latency"]["batch"] == 32
        assert row["bytes"] < row["bytes_dense"]
        assert row["validation"] == metrics["validation"]["final"]
        assert row["divergence"] == metrics["validation"]["divergence"] > 0
    pooled = [(t["recipe"], t["against"], t["seeds"]) for t in found["pooled"]]
    assert pooled == [("svd-ft", "dense", 1), ("svd", "dense", 1), ("svd", "svd-ft", 1)]
    assert "svd-ft" in (compared / "compare.html").read_text()


def test_texts_to_learn_from_are_named_in_words(tiny: Tiny, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a good film\n", encoding="utf-8")
    cells = plan(tiny.model, tmp_path, tiny.data, ["svd-ft"], [0.5], [0], {"transfer": texts})
    said = about(cells, {"transfer": texts})["settings"]["transfer"]
    assert said == str(texts)
    assert f"--transfer {texts}" in command(cells, tmp_path, "svd-ft", {"transfer": texts})


def test_the_fine_tuned_model_is_made_once(compared: Path) -> None:
    files = [compared / "runs" / f"{name}-0.5-0/stages/dense/model.safetensors" for name in RECIPES]
    assert files[0].samefile(files[1])
    answers = [file.with_name("answers.npz") for file in files]
    assert answers[0].samefile(answers[1])
    first, second = read_json(compared / "compare.json")["rows"]
    assert first["shared"] == []
    assert "dense" in second["shared"]
    assert second["seconds_of"]["dense"] == first["seconds_of"]["dense"]
    assert first["dense"] == second["dense"]


@pytest.mark.slow
def test_what_another_one_fine_tuned_is_taken_over(
    compared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    found = compare(**own(tiny, folder, recipes=("kfac-svd",), reuse=(compared,)))
    assert "dense" in found["rows"][0]["shared"]
    assert found["rows"][0]["dense"] == read_json(compared / "compare.json")["rows"][0]["dense"]
    assert f"--reuse {compared}" in found["command"]
    log = (folder / "runs/kfac-svd-0.5-0/logs/run.log").read_text()
    assert "dense         reused from another run" in log


def test_pairs_are_those_of_the_bits(compared: Path) -> None:
    found = read_json(compared / "compare.json")
    [test] = found["paired"]
    first, second = found["rows"]
    n = read_json(compared / "runs/svd-0.5-0/metrics.json")["stages"]["final"]["n"]
    gained = (test["recipe_only"] - test["baseline_only"]) / n
    assert gained == pytest.approx(second["final"] - first["final"])


def test_what_is_finished_is_not_run_again(
    compared: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(compared, folder)
    monkeypatch.setattr(pipeline, "run", refuse)
    before = read_json(folder / "compare.json")
    # The copy lies elsewhere, and what is read is the same.
    found = compare(**own(tiny, folder))
    assert found["rows"] == before["rows"]
    # Now the stages are gone, as they are unless asked for.
    assert not (folder / "runs/svd-0.5-0/stages").exists()
    assert (folder / "runs/svd-0.5-0/model/config.json").is_file()


@pytest.mark.slow
def test_a_size_more_runs_that_alone_and_goes_on_after_a_kill(
    compared: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(compared, folder)
    run, made = pipeline.run, []

    def killed_at_the_second(settings: Any) -> Any:
        if made:
            raise KeyboardInterrupt
        made.append(settings.out.name)
        return run(settings)

    monkeypatch.setattr(pipeline, "run", killed_at_the_second)
    asked = own(tiny, folder, params=(0.25,), baseline="svd")
    with pytest.raises(KeyboardInterrupt):
        compare(**asked)
    assert made == ["svd-ft-0.25-0"]
    assert read_json(folder / "compare.json")["missing"] == 1
    monkeypatch.setattr(pipeline, "run", run)
    found = compare(**asked)
    places = [(r["recipe"], r["params"]) for r in found["rows"]]
    assert sorted(places) == [("svd", 0.25), ("svd", 0.5), ("svd-ft", 0.25), ("svd-ft", 0.5)]
    assert all("dense" in row["shared"] for row in found["rows"] if row["params"] == 0.25)
    assert {test["recipe"] for test in found["paired"]} == {"svd-ft"}


def test_one_that_fails_does_not_lose_the_others(
    compared: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(compared, folder)
    (folder / "runs/svd-ft-0.5-0/metrics.json").unlink()
    run = pipeline.run

    def broken(settings: Any) -> Any:
        if settings.method.name == "svd-ft":
            raise ZeroDivisionError("of a defect")
        return run(settings)

    monkeypatch.setattr(pipeline, "run", broken)
    found = compare(**own(tiny, folder))
    [failed] = found["failed"]
    assert failed["recipe"] == "svd-ft"
    assert failed["why"] == "ZeroDivisionError: of a defect"
    assert [row["recipe"] for row in found["rows"]] == ["svd"]
    assert "of a defect" in (folder / "compare.html").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipes": ("svd-ft", "svd-tf")}, "svd-tf"),
        ({"recipes": ()}, "recipes must list one or more"),
        ({"params": (0.5, 1.5)}, r"params is 1.5, but must be in \(0, 1\]"),
        ({"seeds": (0, -1)}, "seed is -1"),
        ({"kept": 0.5}, "kept is not a setting of any of svd-ft, svd"),
        ({"baseline": "lpaf"}, "baseline 'lpaf' is not among the recipes: svd-ft, svd"),
        ({"rank": 3}, "rank is not an option of a comparison"),
        ({"keep": "some"}, "keep 'some' is unknown"),
        ({"ranks": "fair"}, "fair"),
        (
            {"recipes": ("svd", Recipe(FineTune(), Factorize(), name="svd"))},
            "two recipes are called svd",
        ),
    ],
)
def test_all_is_checked_before_anything_runs(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.setattr(pipeline, "run", refuse)
    with pytest.raises(LpafError, match=said):
        compare(**chosen(tiny, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_setting_reaches_the_recipes_that_have_it(tmp_path: Path) -> None:
    cells = plan("m", tmp_path, "t.csv", ("svd-ft", "lpaf"), (0.5,), (0, 1), {"kept": 0.3})
    assert [(cell.recipe, cell.seed) for cell in cells] == [
        (name, seed) for seed in (0, 1) for name in ("svd-ft", "lpaf")
    ]
    assert [cell.settings.value("kept") for cell in cells] == [None, 0.3, None, 0.3]
    recipe = Recipe(*make_recipe("svd").stages, name="my own/one")
    [cell] = plan("m", tmp_path, "t.csv", (recipe,), (0.5,), (0,), {})
    assert cell.folder == tmp_path / "runs" / "my_own_one-0.5-0"


def test_a_folder_of_another_comparison_is_refused(compared: Path, tiny: Tiny) -> None:
    with pytest.raises(LpafError, match=r"another comparison \(tune_epochs 0.5 there, 1.0 now\)"):
        compare(**chosen(tiny, compared))
    with pytest.raises(LpafError, match="preset 'standard' there, 'quick' now"):
        compare(**own(tiny, compared, preset="quick"))


def test_a_folder_of_something_else_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(LpafError, match=r"has no comparison of lpaf \(it holds thesis.tex\)"):
        compare(**chosen(tiny, tmp_path))


def test_two_do_not_work_in_one_folder(compared: Path, tiny: Tiny) -> None:
    held = os.open(compared, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(LpafError, match="another comparison is using"):
            compare(**own(tiny, compared))
    finally:
        os.close(held)


def test_what_no_cell_can_begin_with_ends_it(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(LpafError, match="missing"):
        compare(**chosen(tiny, tmp_path / "out", task=tmp_path / "missing.csv"))


def test_the_command(
    compared: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(compared, folder)
    words = ["compare", str(tiny.model), "--task", str(tiny.data), "--out", str(folder)]
    words += ["--recipes", *RECIPES, "--finetune-epochs", "2", "--tune-epochs", "0.5"]
    words += ["--batch", "8", "--length", "16"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert f"Report: {folder / 'compare.html'}" in said.out
    assert "all 2 cells are finished" in said.err
    (folder / "runs/svd-0.5-0/metrics.json").unlink()
    (folder / "runs/svd-0.5-0/settings.json").unlink()
    assert main(words) == 2  # what lies there now is no run
    assert "has no run of lpaf" in capsys.readouterr().err


@pytest.mark.slow
def test_decoders_by_their_perplexity(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "gpt2", "gpt2")
    texts = [write_text(tmp_path / f"{i}.txt", 320, seed=i) for i in range(2)]
    found = compare(
        model,
        out=tmp_path / "out",
        recipes=("drone", "svd"),
        calibration=texts[0],
        held_out=texts[1],
        length=16,
        quiet=True,
    )
    assert found["failed"] == []
    assert found["metric"] == "perplexity"
    assert found["baseline"] == "drone"
    assert found["paired"] == []
    for row in found["rows"]:
        assert row["final"] > 1
        assert row["interval"] is row["latency"] is row["retained"] is None
        assert row["before_tuning"] == row["final"]
    assert "Perplexity" in (tmp_path / "out" / "compare.html").read_text()
