import dataclasses
import itertools
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.recipes import RECIPES, Recipe, make_recipe
from lpaf_jax.runs.settings import PRESETS, Settings, as_json, check, make_settings
from lpaf_jax.stages import Factorize, FineTune, Tune
from lpaf_jax.tasks.options import Options


def settings(**chosen: Any) -> Settings:
    return make_settings("minilm", task="sst2", out="runs/a", **chosen)


def test_values_of_the_preset_yield_to_chosen_ones() -> None:
    for name, values in PRESETS.items():
        made = settings(preset=name).method.settings()
        usual = make_recipe("lpaf").settings()
        assert made == usual | values | {"params": 0.5}
    assert settings(preset="paper", kept=0.2).value("kept") == 0.2
    found = settings(preset="paper", kept=0.2).value("prune_lr")
    assert found == PRESETS["paper"]["prune_lr"]


def test_a_preset_leaves_what_a_recipe_is_about() -> None:
    # `svd` is defined by not being tuned.
    assert settings(recipe="svd", preset="quick").value("tune_epochs") == 0
    assert settings(recipe="svd-ft", preset="quick").value("tune_epochs") == 0.6
    assert settings(recipe="svd", tune_epochs=1).value("tune_epochs") == 1


def test_paths_may_be_strings_and_names_paths() -> None:
    made = make_settings(Path("a"), task=Path("b.csv"), out="c", data="d", reuse="e")
    assert (made.model, made.task) == ("a", "b.csv")
    assert (made.out, made.data, made.reuse) == (Path("c"), Path("d"), (Path("e"),))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["params", "kept"], [0, -0.1, 1.01, float("nan"), "half"]),
        ("kept", None),
        *itertools.product(["finetune_lr", "prune_lr", "tune_lr"], [0, 1, -1e-3, float("nan")]),
        *itertools.product(["warmup", "cooldown", "p_init", "p_end"], [-0.1, 1.1, float("nan")]),
        *itertools.product(["floor", "ridge", "consistency", "weight_decay"], [-1, float("inf")]),
        *itertools.product(["prune_epochs"], [0, -1, float("inf")]),
        *itertools.product(["finetune_epochs", "tune_epochs"], [-1, float("inf")]),
        *itertools.product(["batch", "mask_every", "rank", "limit"], [0, -3, 2.5, True, "8"]),
        *itertools.product(["least"], [-0.1, 1]),
        *itertools.product(["multiple_of", "moment_batches", "samples"], [0, 2.5]),
        *itertools.product(["length"], [3, 16.0]),
        *itertools.product(["seed"], [-1, 2**31, 0.5]),
        *itertools.product(["score_decay"], [0, 1.5]),
        ("solver", "exact"),
        ("importance", "Fisher"),
        ("ranks", "Uniform"),
        ("criterion", "zeroth"),
        ("scope", "layer"),
        ("keep", "none"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(LpafError, match=rf"^{name} ") as caught:
        settings(**{name: value})
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("params", [None, 1, 1e-6]),
        ("finetune_epochs", [0]),
        ("tune_epochs", [0]),
        ("floor", [0]),
        ("score_decay", [None, 1]),
        ("rank", [None, 1]),
        ("seed", [0, 2**31 - 1]),
    ],
)
def test_the_ends_of_a_range_belong_to_it(name: str, values: list[Any]) -> None:
    for value in values:
        settings(**{name: value})


def test_warmup_and_cooldown_leave_a_step_between() -> None:
    settings(warmup=0.5, cooldown=0.49)
    with pytest.raises(LpafError, match="together"):
        settings(warmup=0.5, cooldown=0.5)


def test_an_infinite_number_is_told_to_be_finite() -> None:
    for name in ("finetune_epochs", "tune_epochs"):
        with pytest.raises(LpafError, match=f"{name} is inf, but must be finite"):
            settings(**{name: float("inf")})


def test_share_and_rank_choose_the_same_thing() -> None:
    with pytest.raises(LpafError, match=r"^params and rank both"):
        settings(params=0.5, rank=8)
    assert (settings().share, settings(params=0.2).share, settings(rank=8).share) == (
        0.5,
        0.2,
        None,
    )
    # The default said aloud is the same run.
    assert as_json(settings()) == as_json(settings(params=0.5))
    assert as_json(settings(rank=8))["params"] is None


def test_unknown_names_are_told_the_known_ones() -> None:
    with pytest.raises(LpafError, match=r"'fast'.*quick"):
        settings(preset="fast")
    with pytest.raises(LpafError, match=r"'epochs'.*tune_epochs"):
        settings(epochs=3)
    with pytest.raises(LpafError, match=r"recipe 'lpfa'.*lpaf.*svd-ft"):
        settings(recipe="lpfa")
    with pytest.raises(LpafError, match=r"'kept' of recipe svd-ft"):
        settings(recipe="svd-ft", kept=0.5)


def test_every_choice_the_command_line_offers_is_accepted() -> None:
    # The types are what the command line reads, `check` what a Python call meets.
    kinds = [Options, *(type(stage) for stage in make_recipe("lpaf").stages)]
    literals: dict[str, Any] = {}
    for kind in kinds:
        hints = typing.get_type_hints(kind).items()
        literals |= {n: typing.get_args(t) for n, t in hints if "typing.Literal" in str(t)}
    assert literals.keys() == {
        "criterion",
        "scope",
        "prune_from",
        "mix_with",
        "dtype",
        "keep",
        "preset",
        "channels",
        "channels_by",
        "embeddings_as",
        "lora_base",
        "lora_order",
    }
    for value in literals.pop("channels"):  # of which two are for decoders
        of_text({"recipe": "kfac-svd", "channels": value})
    for value in literals.pop("channels_by"):
        of_text({"recipe": "lorap", "channels_by": value})
    for value in literals.pop("embeddings_as"):
        check(settings(embeddings=0.5, embeddings_as=value))
    for value in literals.pop("lora_base"):
        check(settings(recipe="svd-ft", lora=4, lora_base=value))
    for value in literals.pop("lora_order"):
        check(settings(recipe="svd-ft", lora=4, lora_order=value))
    for name, values in literals.items():
        for value in values:
            check(settings(**{name: value}))


def of_text(chosen: dict[str, Any]) -> Settings:
    return make_settings("m", out="o", calibration="a.txt", **chosen)


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_recipe_can_be_run_as_it_is(name: str, preset: str) -> None:
    chosen = {"recipe": name, "preset": preset}
    alone = name in ("aa-svd", "channels", "lorap", "sparsegpt-svd", "width-pruning")
    made = of_text(chosen) if alone else settings(**chosen)
    assert made.method.name == name
    assert made.steps[0][0] == "dense"
    assert made.steps[-1][0] == "final"


def test_a_task_or_a_text_and_not_both() -> None:
    def of(**chosen: Any) -> Settings:
        return make_settings("m", out="o", **chosen)

    for chosen in ({}, {"consistency": 1.0}):
        with pytest.raises(LpafError, match="give --task, or --calibration"):
            of(**chosen)
    with pytest.raises(LpafError, match="exclude each other"):
        of(task="sst2", calibration="a.txt")
    with pytest.raises(LpafError, match="held_out works only with --calibration"):
        of(task="sst2", held_out="a.txt")
    with pytest.raises(LpafError, match="limit works only with --task"):
        of(calibration="a.txt", limit=3)
    with pytest.raises(LpafError, match="recipe lpaf prunes.*needs a task.*channels"):
        of(calibration="a.txt", recipe="lpaf")
    with pytest.raises(LpafError, match="'adam' comes from pruning"):
        of(calibration="a.txt", recipe="fwsvd", importance="adam")
    assert of(calibration="a.txt").method.name == "channels"
    assert of(calibration="a.txt").share == 0.8


def test_as_json_is_json_and_names_every_setting() -> None:
    made = settings(reuse="other")
    values = as_json(made)
    assert json.loads(json.dumps(values)) == values
    options = {f.name for f in dataclasses.fields(Options)}
    assert values.keys() == options | made.method.settings().keys()
    assert values == as_json(settings(reuse=Path("other")))


def test_a_recipe_of_ones_own_may_be_given_as_it_is() -> None:
    own = Recipe(FineTune(), Factorize(importance="none", solver="plain"), Tune(), name="mine")
    made = settings(recipe=own, tune_epochs=3)
    assert made.method.name == "mine"
    assert made.value("tune_epochs") == 3
