"""The cells of a comparison: what is run with which settings."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.files import json_text
from lpaf_jax.recipes import Recipe, make_recipe
from lpaf_jax.runs.settings import Settings, as_json, make_settings, typed
from lpaf_jax.tasks.options import NOT_COMPARED, Options

# Options of a run that the comparison decides on itself, or that have no sense for it.
_NOT_OURS = ("recipe", "seed", "force", "distributed", "rank")
# What may differ between comparisons that lie in one folder, or is told apart from the settings.
_APART = {*NOT_COMPARED, "recipe", "seed"}


class Cell(NamedTuple):
    """One run of a comparison, by the name of its recipe."""

    recipe: str
    params: float
    seed: int
    settings: Settings

    @property
    def folder(self) -> Path:
        """The folder of its run."""
        return self.settings.out

    @property
    def called(self) -> str:
        """As a person reads it."""
        return f"{self.recipe}, {100 * self.params:g} %, seed {self.seed}"


def plan(
    model: Path | str,
    folder: Path,
    task: Path | str | None,
    recipes: Sequence[str | Recipe],
    params: Sequence[float],
    seeds: Sequence[int],
    chosen: Mapping[str, Any],
) -> list[Cell]:
    """All cells with their settings, checked; those of a seed one after the other.

    Raises:
        LpafError: an unknown name, or a value outside its range.
    """
    for name in _NOT_OURS:
        if name in chosen:
            raise SettingError((name,), "is not an option of a comparison")
    for name, values in (("recipes", recipes), ("params", params), ("seeds", seeds)):
        if isinstance(values, str) or not list(values):
            raise SettingError((name,), "must list one or more")
    made: dict[str, tuple[str | Recipe, Recipe]] = {}
    for each in recipes:
        recipe = each if isinstance(each, Recipe) else make_recipe(each)
        if recipe.name in made and made[recipe.name][0] != each:
            raise LpafError(f"two recipes are called {recipe.name}: give them different names")
        made[recipe.name] = each, recipe
    options = {f.name for f in fields(Options)}
    known = options.union(*(recipe.settings() for _, recipe in made.values()))
    for name in chosen:
        if name not in known:
            raise SettingError((name,), f"is not a setting of any of {', '.join(made)}")
    cells = []
    for seed in dict.fromkeys(seeds):
        for share in sorted(dict.fromkeys(params), reverse=True):
            for name, (given, recipe) in made.items():
                has = options | set(recipe.settings())
                if recipe.settings().get("tune_epochs") == 0:
                    has -= {"tune_epochs"}  # a recipe that does not tune stays what it is
                settings = make_settings(
                    model,
                    out=folder / "runs" / place_of(name, share, seed),
                    task=task,
                    recipe=given,
                    params=share,
                    seed=seed,
                    keep="all",
                    **{n: v for n, v in chosen.items() if n in has},
                )
                cells.append(Cell(name, share, seed, settings))
    return cells


def place_of(recipe: str, params: Any, seed: Any) -> str:
    """The name of the folder of a cell's run."""
    return re.sub(r"[^\w.-]+", "_", f"{recipe}-{params:g}-{seed}")


def about(cells: list[Cell], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What all cells have in common, and what the recipes say of themselves."""
    settings = cells[0].settings
    values, options = as_json(settings), {f.name for f in fields(Options)}
    common = {n: values[n] for n in values if n in options - _APART}
    common |= {"preset": settings.preset}
    common |= {
        name: str(value) if isinstance(value, Path) else value
        for name, value in chosen.items()
        if name not in options
    }
    described = {}
    for cell in cells:
        trained = cell.settings.trained
        steps = cell.settings.steps if trained else cell.settings.steps_of_texts
        text = cell.settings.method.summary
        described[cell.recipe] = {"summary": text, "stages": [s.leaves for _, s in steps]}
    found: dict[str, Any] = json.loads(json_text({"settings": common, "recipes": described}))
    return found


def command(cells: list[Cell], folder: Path, baseline: str, chosen: Mapping[str, Any]) -> str:
    """The words that make these cells, as far as words can."""
    settings = cells[0].settings
    flags = {
        "task": settings.task,
        "recipes": list(dict.fromkeys(str(cell.settings.recipe) for cell in cells)),
        "params": list(dict.fromkeys(cell.params for cell in cells)),
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
        "baseline": baseline,
        **{name: value for name, value in chosen.items() if name != "quiet"},
        "out": folder,
    }
    return typed("compare", settings.model, flags)
