import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.errors import LpafError
from lpaf_jax.settings import PRESETS, Settings, as_json, check, make_settings

STEPS = ("prune", "weighting", "mixing")


def settings(**chosen: Any) -> Settings:
    return make_settings("minilm", task="sst2", out="runs/a", **chosen)


def test_values_of_the_preset_yield_to_chosen_ones() -> None:
    plain = Settings(model="minilm", task="sst2", out=Path("runs/a"))
    assert settings() == plain
    for name, values in PRESETS.items():
        expected = dataclasses.replace(plain, preset=name, **values)
        assert settings(preset=name) == expected
    assert settings(preset="paper", kept=0.25).kept == 0.25
    assert settings(preset="paper", kept=0.25).prune_lr == PRESETS["paper"]["prune_lr"]


def test_paths_may_be_strings_and_names_paths() -> None:
    made = make_settings(Path("a"), task=Path("b.csv"), out="c", data="d", reuse="e")
    assert (made.model, made.task) == ("a", "b.csv")
    assert (made.out, made.data, made.reuse) == (Path("c"), Path("d"), Path("e"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["params", "kept"], [0, -0.1, 1.01, float("nan"), "half"]),
        ("kept", None),
        *itertools.product(["finetune_lr", "prune_lr", "tune_lr"], [0, 1, -1e-3, float("nan")]),
        *itertools.product(["warmup", "cooldown", "p_init", "p_end"], [-0.1, 1.1, float("nan")]),
        *itertools.product(["floor", "consistency", "weight_decay"], [-1, float("inf")]),
        *itertools.product(["prune_epochs", "tune_epochs"], [0, -1, float("inf")]),
        *itertools.product(["finetune_epochs"], [-1, float("inf")]),
        *itertools.product(["batch", "mask_every", "rank", "limit"], [0, -3, 2.5, True, "8"]),
        *itertools.product(["length"], [3, 16.0]),
        *itertools.product(["seed"], [-1, 2**31, 0.5]),
        *itertools.product(["score_decay"], [0, 1.5]),
        ("solver", "exact"),
        ("importance", "fisher"),
        ("criterion", "zeroth"),
        ("scope", "layer"),
        ("keep", "none"),
        ("without", ["tune"]),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(LpafError, match=rf"^{name} ") as caught:
        settings(**{name: value})
    wrong = value[0] if isinstance(value, list) else value
    assert repr(wrong) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("params", [None, 1, 1e-6]),
        ("finetune_epochs", [0]),
        ("floor", [0]),
        ("score_decay", [None, 1]),
        ("rank", [None, 1]),
        ("seed", [0, 2**31 - 1]),
        ("without", [(), "prune", ["prune", "mixing"]]),
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


def test_every_choice_the_command_line_offers_is_accepted() -> None:
    # The types are what the command line reads, `check` what a Python call meets.
    import typing

    hints = typing.get_type_hints(Settings)
    literals = {n: typing.get_args(t) for n, t in hints.items() if "Literal" in str(t)}
    literals.pop("without")
    others = {"solver", "importance", "criterion", "scope", "dtype", "keep", "preset"}
    assert literals.keys() == others
    for name, values in literals.items():
        for value in values:
            check(settings(**{name: value}))
    for step in STEPS:
        check(settings(without=[step]))


def test_the_recipe_is_named_by_what_is_left_out() -> None:
    assert settings().recipe == "lpaf"
    assert settings(without=["prune"]).recipe == "lpaf-without-step-1"
    assert settings(without=["weighting"]).recipe == "lpaf-without-step-2"
    assert settings(without=["mixing"]).recipe == "lpaf-without-step-3"
    for order in itertools.permutations(STEPS):
        assert settings(without=[*order, order[0]]).recipe == "svd-ft"
    assert settings(solver="none").recipe == settings(importance="none").recipe
    assert settings(solver="none").recipe == "lpaf-without-step-2"
    assert settings(criterion="magnitude").recipe == "lpaf-magnitude"
    assert settings(criterion="magnitude", without=["prune"]).recipe == "lpaf-without-step-1"
    names = {settings(without=c).recipe for n in range(4) for c in itertools.combinations(STEPS, n)}
    assert len(names) == 8
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)


def test_as_json_is_json_and_blind_to_the_order_of_steps() -> None:
    made = settings(without=["prune", "mixing", "prune"], reuse="other")
    values = as_json(made)
    assert json.loads(json.dumps(values)) == values
    assert values.keys() == {f.name for f in dataclasses.fields(Settings)}
    assert values == as_json(settings(without=["mixing", "prune"], reuse=Path("other")))
