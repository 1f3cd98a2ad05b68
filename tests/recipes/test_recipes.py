"""Recipes by name and from files, the order of their stages, and what the command says of them."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.recipes import RECIPES, Recipe, make_recipe, own_settings, register, summary
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.stages import Factorize, FineTune, MixedTune, Prune, Tune

Capture = pytest.CaptureFixture[str]
_NUMBER = itertools.count()

MODULE = """
from lpaf_jax.recipes import Recipe, register
from lpaf_jax.stages import Factorize, FineTune, Tune

@register("{name}")
def other() -> Recipe:
    \"\"\"Something else.\"\"\"
    return Recipe(FineTune(), Factorize(floor=0.25), Tune())

def plain() -> Recipe:
    return Recipe(FineTune(), Factorize(importance="none", solver="plain"))

def number() -> int:
    return 3

def broken() -> Recipe:
    raise RuntimeError("two\\nlines")

def typo() -> Recipe:
    return Recipe(FineTune(epochs=3), Factorize())

def empty() -> Recipe:
    return Recipe()

def lone() -> Recipe:
    return Recipe(Factorize(floor=-1))

text = "no function"
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A file of somebody's own recipes; each test registers another name, which stays."""
    path = tmp_path / "own.py"
    path.write_text(MODULE.replace("{name}", f"of-a-file-{next(_NUMBER)}"))
    return path


def refusal(name: str | Path) -> str:
    with pytest.raises(LpafError) as caught:
        make_recipe(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_says_in_one_line_what_it_does(name: str) -> None:
    message = summary(name)
    assert message.endswith(".")
    assert "\n" not in message
    made = make_recipe(name)
    assert made.name == name
    made.check()
    made.check_order()


def test_a_name_is_registered_once() -> None:
    def other() -> Recipe:
        raise AssertionError("it was made")

    with pytest.raises(LpafError, match=r"^recipe 'svd' is registered already"):
        register("svd")(other)
    assert make_recipe("svd").stages[-1] == Tune(tune_epochs=0)
    register("svd")(RECIPES["svd"])  # the same again is no other


def test_steps_are_named_by_what_they_leave() -> None:
    tune, cut = Tune(), Factorize()

    def names(*stages: Any) -> list[str]:
        return [name for name, _ in Recipe(*stages).steps()]

    usual = ["dense", "pruned", "factorized", "final"]
    assert names(FineTune(), Prune(), cut, MixedTune()) == usual
    assert names(FineTune(), cut, Tune(tune_epochs=0)) == ["dense", "final"]
    assert names(FineTune(), Prune(), Prune(), Prune(), cut, tune, tune, tune) == [
        *("dense", "pruned", "pruned-2", "pruned-3", "factorized", "tuned", "tuned-2", "final")
    ]
    # No epoch of fine-tuning leaves the model as it is, which is still what others are held to.
    assert names(FineTune(finetune_epochs=0), cut) == ["dense", "final"]


def test_other_settings_reach_every_stage_that_has_them() -> None:
    recipe = Recipe(FineTune(), Factorize(), Tune(), MixedTune(tune_epochs=3), name="mine")
    changed = recipe.with_settings(tune_epochs=2, p_init=0.1, rank=4)
    assert changed.stages == (
        *(FineTune(), Factorize(rank=4)),
        *(Tune(tune_epochs=2), MixedTune(tune_epochs=2, p_init=0.1)),
    )
    assert changed.name == "mine"
    assert recipe.settings()["tune_epochs"] == 1  # that of the first; the recipe stays as it was
    with pytest.raises(LpafError, match=r"^kept is not a setting of recipe mine; it has"):
        recipe.with_settings(kept=0.2)


def test_a_step_depends_on_the_settings_of_those_up_to_it() -> None:
    def upto(name: str, **chosen: Any) -> list[Any]:
        return own_settings(make_recipe("lpaf").with_settings(**chosen).steps(), name)

    for name in ("dense", "pruned"):
        assert upto(name) == upto(name, rank=3, tune_lr=0.1)
    assert upto("dense") == upto("dense", kept=0.2)
    assert upto("pruned") != upto("pruned", kept=0.2)
    assert upto("factorized") != upto("factorized", rank=3)
    assert upto("final") != upto("final", tune_lr=0.1)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([FineTune(), Tune()], "has 0 stages Factorize or PruneGroups: give it exactly one"),
        (
            [FineTune(), Factorize(), Factorize()],
            "has 2 stages Factorize or PruneGroups: give it exactly one",
        ),
        ([Factorize(), Tune()], "begins with Factorize: put FineTune before it"),
        ([Prune(), Factorize()], "begins with Prune: put FineTune before it"),
        ([FineTune(), FineTune(), Factorize()], "has FineTune twice: keep only the first"),
        ([FineTune(), Factorize(), Prune()], "has Prune after Factorize: put it before it"),
        ([FineTune(), MixedTune(), Factorize()], "has MixedTune before Factorize: put it after it"),
    ],
)
def test_an_order_that_cannot_work_is_refused_before_any_work(
    stages: list[Any], message: str, tmp_path: Path
) -> None:
    recipe = Recipe(*stages, name="mine")
    with pytest.raises(LpafError, match=f"^recipe mine {message}"):
        make_settings("minilm", task="sst2", out=tmp_path / "run", recipe=recipe)


def test_a_text_alone_needs_nothing_but_a_factorization(tmp_path: Path) -> None:
    cut = Factorize(importance="none", solver="plain")
    made = make_settings("m", calibration="c.txt", out=tmp_path, recipe=Recipe(cut))
    assert made.steps_of_texts == [("final", dataclasses.replace(cut, params=0.8))]


def test_a_recipe_of_a_file_is_found_by_function_or_registered_name(module: Path) -> None:
    name = re.findall(r'register\("([\w-]+)"', module.read_text())[0]
    registered, function = make_recipe(f"{module}:{name}"), make_recipe(f"{module}:other")
    assert registered.stages == function.stages
    assert (registered.name, function.name) == (name, "other")
    assert registered.settings()["floor"] == 0.25
    assert make_recipe(name).stages == registered.stages  # the file was read: the name is known
    assert summary(name) == "Something else."
    assert [step for step, _ in make_recipe(f"{module}:plain").steps()] == ["dense", "final"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "the file has no function or recipe none"),
        ("text", "the file has no function or recipe text"),
        ("number", "gives a int, not a Recipe"),
        ("broken", "cannot be made: RuntimeError: two lines"),
        ("lone", "floor is -1, but must be finite and at least 0"),
        ("typo", "cannot be made: TypeError: .*unexpected keyword argument 'epochs'"),
        ("empty", "has no stage that makes the model smaller"),
    ],
)
def test_a_function_that_gives_no_recipe_is_told(module: Path, name: str, message: str) -> None:
    assert re.search(rf"^--recipe {module}:{name}\b.*{message}$", refusal(f"{module}:{name}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def x(:\n", r"cannot be run: SyntaxError: .*line 1\)"),
        ("import nowhere_to_be_found\n", "cannot be run: ModuleNotFoundError: .*nowhere"),
        ("raise SystemExit(3)\n", "cannot be run: SystemExit: 3"),
    ],
)
def test_a_file_that_cannot_be_run_is_told_and_read_again_once_mended(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    assert re.search(rf"^--recipe {file}: the file {message}", refusal(f"{file}:plain"))
    file.write_text(MODULE.replace("{name}", f"mended-{next(_NUMBER)}") + "# longer than before\n")
    assert make_recipe(f"{file}:plain").name == "plain"


def test_a_file_that_is_not_there_or_whose_recipe_is_not_said_is_told(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    assert refusal(f"{file}:mine") == f"--recipe {file}: there is no such file"
    assert refusal(file) == f"--recipe {file}: name a recipe in the file, as {file}:NAME"
    assert refusal(tmp_path / "own.yaml").endswith("own.yaml: there is no such file")


def test_a_recipe_may_be_written_down(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("stages:\n- FineTune:\n- Factorize: {rank: 4, solver: row}\n- Tune\n")
    assert make_recipe(str(file)) == Recipe(FineTune(), Factorize(rank=4), Tune(), name="mine")
    file.write_text("name: other\n" + file.read_text())
    assert make_recipe(str(file)).name == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [FineTune\n", "cannot be read: .*line 1"),
        ("", "has no list of stages: write `stages: "),
        ("stages: FineTune\n", "has no list of stages: write `stages: "),
        ("stages: [FineTune, Factorise]\n", "unknown stage 'Factorise': choose one of FineTune"),
        ("stages: [{Factorize: {rnk: 4}}]\n", "Factorize has no setting 'rnk'; it has .*rank"),
        ("stages: [{Factorize: {rank: four}}]\n", "rank is 'four', but must be a whole number"),
        ("stages: [{Prune: {criterion: [a]}}]\n", r"criterion \['a'\] is unknown: choose one"),
        ("stages: [{1: {rank: 4}}]\n", "neither a stage nor a stage with settings"),
        ("stages: [{Factorize: 4}]\n", "neither a stage nor a stage with settings"),
        (
            "stages: [FineTune, Factorize]\n1: 2\nnames: a\n",
            "unknown key 1: use name, summary and stages",
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_told(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert re.search(rf"^--recipe {file}.*{message}", refusal(file))


def one_line(capsys: Capture) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"lpaf: error: [^\n]+\n", err), err
    return err


def flags(capsys: Capture, *words: str) -> set[str]:
    """The options that `lpaf compress --help` shows, each at the start of its line."""
    with pytest.raises(SystemExit):
        main(["compress", *words, "--help"])
    return set(re.findall(r"^│? *(--[a-z][\w-]*)", capsys.readouterr().out, re.MULTILINE))


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_options_are_those_of_the_recipe(name: str, capsys: Capture) -> None:
    every = {n for each in RECIPES for n in make_recipe(each).settings()}
    own = make_recipe(name).settings().keys()
    shown = flags(capsys, "--recipe", name)
    assert {n for n in every if f"--{n.replace('_', '-')}" in shown} == own
    assert {"--task", "--out", "--recipe", "--batch"} <= shown


def test_an_option_that_a_recipe_has_not_is_one_line(capsys: Capture) -> None:
    words = ["compress", "m", "--task", "t", "--out", "o"]
    assert main([*words, "--recipe", "svd-ft", "--kept", "0.3"]) == 2
    assert "recipe svd-ft has no option --kept" in one_line(capsys)
    assert main(["compress", "m", "--one-shot", "--calibration", "t.txt", "--out", "o"]) == 2
    assert "--one-shot was removed" in one_line(capsys)
    assert main([*words, "--recipe", "lpfa"]) == 2
    assert "unknown recipe 'lpfa': choose one of lpaf" in one_line(capsys)


def test_recipes_are_listed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "600")
    assert main(["recipes"]) == 0
    table = capsys.readouterr().out
    assert main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recipes"] == {name: summary(name) for name in RECIPES}
    assert found.keys() == {"recipes", "importances", "solvers", "rank rules"}
    for part in found.values():
        assert part
        for name, text in part.items():
            assert re.search(rf"^ *{re.escape(name)} +{re.escape(text)}", table, re.MULTILINE)
    assert "dense → pruned → factorized → final" in table


def test_a_preset_leaves_each_stage_what_it_sets_itself() -> None:
    recipe = Recipe(FineTune(), Factorize(), Tune(), Tune(tune_epochs=3.0), name="twice")
    settings = make_settings("m", task="t", out="o", recipe=recipe, preset="quick")
    assert [s.tune_epochs for s in settings.method.stages if isinstance(s, Tune)] == [0.6, 3.0]


def test_two_stages_of_a_kind_keep_their_own_values_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "stages: [FineTune, Factorize, {Tune: {tune_epochs: 0.3, tune_lr: 1e-3}}, "
        "{Tune: {tune_epochs: 2}}]\n"
    )
    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "run", lambda settings: seen.append(settings) or {})
    monkeypatch.setattr("lpaf_jax.report.print_results", lambda *_: None)
    assert main(["compress", "m", "--task", "t", "--out", "o", "--recipe", str(file)]) == 0
    tunes = [s for s in seen[0].method.stages if isinstance(s, Tune)]
    assert [s.tune_epochs for s in tunes] == [0.3, 2]
    assert [s.tune_lr for s in tunes] == [1e-3, Tune().tune_lr]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"recipe": "drone", "rank": 8}, "rank sets one rank for all .*--ranks share .*uniform"),
        ({"recipe": "fwsvd", "importance": "adam"}, "'adam' comes from pruning, but recipe"),
        ({"task": None, "calibration": "t.txt", "tune_lr": 3e-3}, "tune_lr only affects training"),
        ({"task": None, "calibration": "t.txt", "batch": 7}, "batch only affects training"),
    ],
    ids=str,
)
def test_what_would_fail_late_or_do_nothing(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(LpafError, match=message):
        make_settings("m", **({"task": "t", "out": "o"} | chosen))


def test_a_value_that_is_the_usual_one_is_the_same_run() -> None:
    steps = [
        own_settings(make_settings("m", task="t", out="o", recipe="svd", **given).steps, "final")
        for given in ({}, {"params": 0.5})
    ]
    assert steps[0] == steps[1]


def test_a_file_of_recipes_is_known_by_what_it_holds(tmp_path: Path) -> None:
    found = []
    for number in (0.25, 0.5):
        file = tmp_path / f"{number}" / "own.py"
        file.parent.mkdir()
        text = MODULE.replace("{name}", f"of-a-file-{next(_NUMBER)}")
        file.write_text(f"# {number}\n{text}")
        recipe = make_recipe(f"{file}:plain")
        found.append(own_settings(recipe.steps(), "final", recipe.digest))
    assert found[0] != found[1]
    assert make_recipe("svd").digest is None


def test_a_name_of_ours_means_ours(tmp_path: Path, module: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: lpaf\nstages: [FineTune, Factorize]\n")
    assert "the name lpaf is taken by another recipe" in refusal(file)
    assert "has no function or recipe svd" in refusal(f"{module}:svd")
    file.write_text("name: mine\nsummary: Nothing new.\nstages: [FineTune, Factorize]\n")
    assert make_recipe(str(file)).summary == "Nothing new."
    file.write_text("stages: [FineTune, Factorize, {Tune: {transfer: 5}}]\n")
    assert "transfer is 5, but must name a file" in refusal(file)
