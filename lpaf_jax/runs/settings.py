"""Every choice of a run: its options and its recipe, from a preset and what a person chooses."""

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.ranges import demand_choice
from lpaf_jax.recipes import Recipe, make_recipe
from lpaf_jax.recipes.base import FINAL
from lpaf_jax.stages import Factorize, FineTune, MixedTune, Prune, Tune
from lpaf_jax.stages.prune import check_schedule
from lpaf_jax.stages.shrink import Shrink
from lpaf_jax.tasks.options import NOT_COMPARED as NOT_COMPARED
from lpaf_jax.tasks.options import Options, check_options, demand_source

# What a run takes where no recipe is named: with a task, and without one.
RECIPE, RECIPE_OF_TEXTS = "lpaf", "channels"
_QUICK = {
    "kept": 0.5,
    "finetune_epochs": 1.25,
    "prune_epochs": 0.5,
    "tune_epochs": 0.6,
}
# Unsigned scores and more weights than the tenth of the paper's Figure 3: signed ones took every
# model here to chance, and a model pruned to a tenth is behind what half of the numbers can hold.
_PAPER = {
    "prune_from": "pretrained",
    "kept": 0.25,
    "finetune_epochs": 3.0,
    "prune_epochs": 10.0,
    "tune_epochs": 10.0,
    "finetune_lr": 3e-5,
    "prune_lr": 3e-5,
    "tune_lr": 3e-5,
}
PRESETS: dict[str, dict[str, Any]] = {"quick": _QUICK, "standard": {}, "paper": _PAPER}


_TRAINING = ("batch", "dtype", "accumulate", "warmup", "weight_decay")
# Of these there is something to say without a task, too.
_OF_TUNING = {*_TRAINING, *(f.name for f in dataclasses.fields(Tune))} - {"transfer"}


@dataclass(frozen=True)
class Settings(Options):
    """Options and recipe of a run, checked by `make_settings`."""

    method: Recipe = dataclasses.field(kw_only=True)

    def value(self, name: str, default: Any = None) -> Any:
        """The setting `name` of the recipe, or the default where it has none of that name."""
        return self.method.settings().get(name, default)

    @property
    def trains_head(self) -> bool:
        """See `Options`: a recipe may take the model as it is."""
        return any(isinstance(s, FineTune) and s.finetune_epochs > 0 for _, s in self.steps)

    @property
    def trained(self) -> bool:
        """Whether there is a task, and not a text alone."""
        return self.task is not None

    @property
    def steps(self) -> list[tuple[str, Any]]:
        """The stages of the run by the names of the models they leave."""
        return self.method.steps()

    @property
    def steps_of_texts(self) -> list[tuple[str, Any]]:
        """The same without a task: the factorization, and tuning where epochs are asked for."""
        tunes = [
            stage for stage in self.method.stages if isinstance(stage, Tune) and not stage.idle
        ]
        if not tunes:
            return [(FINAL, self.factorize)]
        return [(self.factorize.leaves, self.factorize), (FINAL, tunes[0])]

    @property
    def share(self) -> float | None:
        """The share of the compressible numbers to be kept; None where a rank is chosen."""
        return self.smaller.share(self.trained)

    @property
    def smaller(self) -> Shrink:
        """The stage that makes the model smaller."""
        found = [stage for _, stage in self.steps if isinstance(stage, Shrink)]
        if not found:
            raise LpafError(f"recipe {self.method.name} has no stage Factorize or PruneGroups")
        return found[0]

    @property
    def factorize(self) -> Factorize:
        """The same, of a run without a task, which does nothing but factorize and tune."""
        assert isinstance(self.smaller, Factorize)
        return self.smaller


def recipe_of(name: str | None, task: Any, preset: str) -> Recipe:
    """The recipe of that name, with the values of a preset where it has no default of its own.

    Raises:
        LpafError: an unknown preset or recipe.
    """
    if preset not in PRESETS:
        raise LpafError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    if name is None:
        name = RECIPE_OF_TEXTS if task is None else RECIPE
    made = make_recipe(name)
    return with_preset(made if task is not None else of_texts(made), preset)


def of_texts(recipe: Recipe) -> Recipe:
    """The recipe where a text alone is given: it tunes only if epochs are asked for."""
    usual = Tune().tune_epochs
    return recipe.with_stages(
        *(
            dataclasses.replace(stage, tune_epochs=0.0)
            if isinstance(stage, Tune) and stage.tune_epochs == usual
            else stage
            for stage in recipe.stages
        )
    )


def with_preset(recipe: Recipe, preset: str) -> Recipe:
    """The recipe with the values of a preset, but for what it sets to another than the default."""
    stages = []
    for stage in recipe.stages:
        usual = {f.name: f.default for f in dataclasses.fields(stage)}
        values = {
            name: value
            for name, value in PRESETS[preset].items()
            if name in usual and getattr(stage, name) == usual[name]
        }
        stages.append(dataclasses.replace(stage, **values))
    return recipe.with_stages(*stages)


def make_settings(
    model: Path | str,
    *,
    out: Path | str,
    task: Path | str | None = None,
    recipe: str | Recipe | None = None,
    preset: str = "standard",
    **chosen: Any,
) -> Settings:
    """Settings from a preset, a recipe and what is chosen beside them.

    Args:
        model: `minilm`, `smollm2`, a folder, a .gguf file, or a hub id.
        out: folder of the run.
        task: a task's name or a file; None for a text alone (`calibration`).
        recipe: a `Recipe`, or what `--recipe` takes.
        preset: quick, standard or paper.
        chosen: fields of `Options`, and settings of the stages of the recipe.

    Raises:
        LpafError: an unknown preset, recipe or setting, or a value outside its range.
    """
    # First: what else is given may be of a recipe that only the other kind of run takes.
    demand_source(task, chosen.get("calibration"))
    if isinstance(recipe, Recipe):
        method, name = recipe if task is not None else of_texts(recipe), recipe.name
        method = with_preset(method, preset) if preset in PRESETS else method
    else:
        method = recipe_of(recipe, task, preset)
        name = method.name if recipe is None else recipe
    options = {f.name for f in dataclasses.fields(Options)}
    own = {n: v for n, v in chosen.items() if n not in options}
    given = {n: v for n, v in chosen.items() if n in options}
    known = method.settings()
    if unknown := sorted(set(own) - set(known)):
        offered = ", ".join(sorted(options | set(known)))
        raise LpafError(
            f"unknown setting {unknown[0]!r} of recipe {method.name}: choose from {offered}"
        )
    if task is None:
        _check_foreign(own, given, method)
    for path in ("data", "calibration", "held_out"):
        if given.get(path) is not None:
            given[path] = Path(given[path])
    if "reuse" in given:
        reuse = given["reuse"]
        alone = isinstance(reuse, Path | str)
        given["reuse"] = tuple(Path(r) for r in ([reuse] if alone else reuse or ()))
    method = method.with_settings(**own)
    cuts = [stage for stage in method.stages if isinstance(stage, Shrink)]
    if len(cuts) == 1 and cuts[0].params is None:
        # Said, so that a run is the same where it is given.
        method = method.with_settings(params=cuts[0].share(task is not None))
    settings = Settings(
        model=str(model),
        task=None if task is None else str(task),
        out=Path(out),
        recipe=name,
        preset=preset,  # type: ignore[arg-type]
        method=method,
        **given,
    )
    check(settings)
    return settings


def _unused(method: Recipe) -> set[str]:
    """Settings that nothing looks at where there is no task."""
    used = {f.name for f in dataclasses.fields(Factorize)} - {"moment_batches"}
    tunes = [stage for stage in method.stages if isinstance(stage, Tune)]
    tuned = any(not stage.idle for stage in tunes)
    if tuned:
        used |= {name for stage in tunes for name in stage.settings()} - {"transfer"}
    return (method.settings().keys() - used) | (set() if tuned else set(_TRAINING))


def _check_foreign(own: dict[str, Any], given: dict[str, Any], method: Recipe) -> None:
    """Without a task what is said of fine-tuning and pruning would do nothing.

    Nor would what is said of tuning, where no epoch of it is asked for.
    """
    unused = _unused(method.with_settings(**own))
    usual = method.settings() | {f.name: f.default for f in dataclasses.fields(Options)}
    for name, value in (own | given).items():
        if name in unused and value != usual[name]:
            needs = "needs --tune-epochs" if name in _OF_TUNING else "needs --task"
            raise SettingError((name,), f"only affects training, which {needs}: leave it out")


def check(settings: Settings) -> None:
    """Refuse what cannot work.

    Raises:
        LpafError: names the setting and its range.
    """
    demand_choice(settings, "preset", PRESETS)
    check_options(settings)
    settings.method.check()
    if settings.trained:
        settings.method.check_order()
        if isinstance(settings.smaller, Factorize):
            settings.smaller.refuse_blocks(
                "with a task, the whole model is tuned at once (--tune-epochs)"
            )
    for _, stage in settings.steps:
        if isinstance(stage, Prune):
            check_schedule(settings.warmup, stage.cooldown)
    if not settings.trained:
        _check_untrained(settings)


def _check_untrained(settings: Settings) -> None:
    """Without a task a recipe is its factorization, and that needs no labels."""
    name = settings.method.name
    if any(isinstance(stage, Prune) for _, stage in settings.steps):
        raise LpafError(
            f"recipe {name} prunes during training, which needs a task with labels: give --task, "
            f"or use a recipe without training, such as {RECIPE_OF_TEXTS}"
        )
    if settings.smaller.logs is not None:
        raise LpafError(
            f"recipe {name} trains during compression, which needs a task: give --task, "
            "with --language-model for a table of texts"
        )
    chosen = settings.factorize
    from lpaf_jax.importance import IMPORTANCES

    if "pruning" in IMPORTANCES[chosen.importance].needs:
        raise SettingError(
            ("importance",), f"{chosen.importance!r} comes from pruning, which needs --task"
        )
    mixed = any(isinstance(stage, MixedTune) for _, stage in settings.steps_of_texts)
    if mixed and chosen.channels != "none":
        raise SettingError(
            ("channels",),
            f"cannot be combined with the mixed-rank tuning of recipe {name}, as dropped channels "
            "have no counterpart to mix with: use a recipe with plain tuning, such as channels",
        )
    share = chosen.share(trained=False)
    if share is not None and not (0 < share < 1 or (share == 1 and chosen.embeddings)):
        raise SettingError(("params",), f"is {share}, but must lie between 0 and 1")


def command(settings: Settings) -> str | None:
    """The words that make this run, every setting given; None of a recipe that has no name there.

    Without `--force`, which would delete what stands in the folder.
    """
    recipe = settings.recipe or settings.method.name
    try:
        make_recipe(recipe)
    except LpafError:
        return None
    apart = {"model", "force"}
    values = used(settings) | {"recipe": recipe}
    return typed("compress", settings.model, {n: v for n, v in values.items() if n not in apart})


def typed(command: str, model: str, values: Mapping[str, Any]) -> str:
    """`lpaf COMMAND MODEL` with the flags of the values that are given."""
    words = ["lpaf", command, model]
    for name, value in values.items():
        listed = value if isinstance(value, list | tuple) else [value]
        if value is None or value is False or not listed:
            continue
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else map(str, listed)
    return shlex.join(words)


def used(settings: Settings) -> dict[str, Any]:
    """What `as_json` gives but for what nothing looks at: a text alone may train nothing."""
    unused = set() if settings.trained else _unused(settings.method)
    return {name: value for name, value in as_json(settings).items() if name not in unused}


def as_json(settings: Settings) -> dict[str, Any]:
    """The options and the settings of the recipe as JSON values, by name.

    `params` or `length` left out is the value it then has, which is the same run.
    """
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(Options)}
    values |= settings.method.settings() | {"params": settings.share}
    values["recipe"] = settings.method.name
    if settings.trained:
        values["length"] = settings.tokens
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
