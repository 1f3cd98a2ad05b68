"""A method as a short list of stages, registered by name.

```python
@register("fwsvd")
def fwsvd() -> Recipe:
    \"\"\"min Σ_ij r_i (W − AB)²_ij, r_i = Σ_j E[(∂L/∂W_ij)²]. Hsu et al., 2022.\"\"\"
    return Recipe(FineTune(), Factorize(importance="fisher", solver="row"), Tune())
```
"""

import dataclasses
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.registry import Registry
from lpaf_jax.stages import (
    Compensate,
    Factorize,
    FineTune,
    MixedTune,
    Prune,
    PruneGroups,
    Stage,
    Tune,
)
from lpaf_jax.stages.shrink import Shrink

FINAL = "final"
"""What the model after the last stage is called, whatever the stage leaves."""


class Recipe:
    """A method: stages, one after the other.

    Args:
        stages: the first one makes the model that every later figure is compared with.
        name: by which the method is known; `register` gives it.
        summary: the problem that it solves, and its source, on one line.
        digest: of the file that it comes from; another one makes another method.

    Raises:
        LpafError: there is no stage, or none that leaves a smaller model.
    """

    def __init__(
        self, *stages: Stage, name: str = "own", summary: str = "", digest: str | None = None
    ):
        if not stages or not any(stage.shrinks for stage in stages):
            raise LpafError(f"recipe {name} has no stage that makes the model smaller")
        self.stages, self.name, self.summary, self.digest = stages, name, summary, digest

    def __repr__(self) -> str:
        return f"Recipe({', '.join(map(repr, self.stages))}, name={self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.stages, self.name, self.digest

    def with_stages(self, *stages: Stage, name: str | None = None) -> "Recipe":
        """The same method with other stages."""
        return Recipe(*stages, name=name or self.name, summary=self.summary, digest=self.digest)

    def settings(self) -> dict[str, Any]:
        """The fields of all stages by name; of a name in several stages, that of the first."""
        found: dict[str, Any] = {}
        for stage in self.stages:
            found = stage.settings() | found
        return found

    def with_settings(self, **chosen: Any) -> "Recipe":
        """The same method with other settings, each in all stages that have it.

        Raises:
            LpafError: no stage has a field of a name.
        """
        known = self.settings()
        for name in chosen:
            if name not in known:
                raise SettingError(
                    (name,),
                    f"is not a setting of recipe {self.name}; it has {', '.join(sorted(known))}",
                )
        stages = [
            dataclasses.replace(stage, **{n: v for n, v in chosen.items() if n in stage.settings()})
            for stage in self.stages
        ]
        return self.with_stages(*stages)

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            LpafError: names the setting and its range.
        """
        for stage in self.stages:
            stage.check()

    def check_order(self) -> None:
        """Refuse an order of stages in which one would not find what it works on.

        Raises:
            LpafError: names the stage and where it belongs.
        """
        kinds = [type(stage).__name__ for stage in self.stages]
        cuts = [i for i, stage in enumerate(self.stages) if isinstance(stage, Shrink)]
        if len(cuts) != 1:
            raise LpafError(
                f"recipe {self.name} has {len(cuts)} stages Factorize or PruneGroups: give it "
                "exactly one"
            )
        if not isinstance(self.stages[0], FineTune):
            raise LpafError(
                f"recipe {self.name} begins with {kinds[0]}: put FineTune before it, with "
                "finetune_epochs 0 to use the model as it is"
            )
        for i, stage in enumerate(self.stages[1:], 1):
            if isinstance(stage, FineTune):
                raise LpafError(f"recipe {self.name} has FineTune twice: keep only the first")
            if stage.shrinks != (i >= cuts[0]):
                where, there = ("after", "before") if i > cuts[0] else ("before", "after")
                raise LpafError(
                    f"recipe {self.name} has {kinds[i]} {where} {kinds[cuts[0]]}: put it {there} it"
                )

        self._check_cut(cuts[0])

    def _check_cut(self, cut: int) -> None:
        from lpaf_jax.importance import IMPORTANCES
        from lpaf_jax.ranks import RANK_RULES
        from lpaf_jax.stages.tune import nothing_in_turn

        stage = self.stages[cut]
        assert isinstance(stage, Shrink)
        mixed = any(isinstance(each, MixedTune) for each in self.stages[cut:])
        whole = not isinstance(stage, Factorize) or (
            not RANK_RULES[stage.ranks].factorizes or (stage.rank is None and stage.params == 1)
        )
        in_turn = (
            e for e in self.stages[cut:] if isinstance(e, Tune) and e.lora_order == "in-turn"
        )
        if whole and any(in_turn):
            raise nothing_in_turn()
        if not isinstance(stage, Factorize):
            attention = any(isinstance(e, Tune) and e.distil_attention for e in self.stages[cut:])
            if attention and isinstance(stage, PruneGroups) and stage.groups == "all":
                raise SettingError(
                    ("distil_attention",),
                    f"compares the attention of every head, and recipe {self.name} drops heads: "
                    "leave it out, or add --groups channels",
                )
            if mixed:
                raise LpafError(
                    f"recipe {self.name} mixes two thin factors with the matrices that they came "
                    f"from, and {type(stage).__name__} makes none: put Tune after it"
                )
            return
        pruned = any(isinstance(each, Prune) for each in self.stages[:cut])
        if "pruning" in IMPORTANCES[stage.importance].needs and not pruned:
            raise SettingError(
                ("importance",),
                f"{stage.importance!r} comes from pruning, but recipe {self.name} does not prune: "
                "use one that does, such as lpaf",
            )
        beside = any(isinstance(e, Tune) and e.lora is not None for e in self.stages[cut:])
        if beside and not stage.low_rank:
            raise SettingError(
                ("lora",),
                f"trains adapters beside dense matrices or two thin factors, but {stage.solver!r} "
                "makes another form: leave it out, or use another --solver",
            )
        if mixed and not stage.low_rank:
            raise SettingError(
                ("solver",),
                f"{stage.solver!r} does not give two thin factors, which the mixed-rank tuning of "
                f"recipe {self.name} needs: use a recipe without it, such as lpaf-plus",
            )

    def steps(self) -> list[tuple[str, Stage]]:
        """The stages that have something to do, by the names of the models they leave.

        The last one is `final`; stages of one kind are numbered from the second on.
        """
        active = [stage for stage in self.stages if not stage.idle]
        names: list[str] = []
        for stage in active:
            again = sum(name.partition("-")[0] == stage.leaves for name in names)
            names.append(f"{stage.leaves}-{again + 1}" if again else stage.leaves)
        return list(zip([*names[:-1], FINAL], active, strict=True))


def logged_as(steps: list[tuple[str, Stage]]) -> dict[str, str | None]:
    """The name that the training of each step logs under, by the name of its model.

    From it comes the seed, too: a second stage of a kind is numbered and draws its own batches.
    """
    found: dict[str, str | None] = {}
    for name, stage in steps:
        again = sum(each.logs == stage.logs for _, each in steps[: len(found)])
        found[name] = f"{stage.logs}-{again + 1}" if stage.logs and again else stage.logs
    return found


def own_settings(steps: list[tuple[str, Stage]], upto: str, digest: str | None = None) -> list[Any]:
    """What the model after step `upto` depends on, of the recipe, as JSON values.

    A file that a stage reads is known by what it holds, and so is that of the recipe, by `digest`:
    its own stages may do anything, and Factorize may name an importance of it.
    """
    found: list[Any] = []
    for name, stage in steps:
        settings = {
            key: f"{value} {_digest(value)}" if isinstance(value, Path) else value
            for key, value in stage.settings().items()
        }
        ours = type(stage).__module__.startswith("lpaf_jax.")
        if digest is not None and (isinstance(stage, Factorize) or not ours):
            settings["file of the recipe"] = digest
        found.append([type(stage).__name__, *sorted(settings.items())])
        if name == upto:
            break
    return found


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
    except OSError as error:
        raise LpafError(f"{path} cannot be read: {error.strerror}") from None


Maker = Callable[[], Recipe]
RECIPES: Registry[Maker] = Registry("recipe")


def register(name: str) -> Callable[[Maker], Maker]:
    """Decorator of a function that makes a recipe: it is then known as `--recipe NAME`.

    Its docstring is what `lpaf recipes` and the pages say of it: the problem, and the source.
    """

    def known(make: Maker) -> Maker:
        return RECIPES.add(name, make)

    return known


def summary(name: str) -> str:
    """What a registered recipe says of itself, as one paragraph."""
    return _summary_of(RECIPES[name])


def _summary_of(make: Maker) -> str:
    return " ".join((inspect.getdoc(make) or "").split())


def make_recipe(name: str) -> Recipe:
    """The recipe that a person means by `name`.

    Args:
        name: a registered one; FILE.py:NAME, a recipe in a file of one's own, registered there or
            the name of its function; or FILE.yaml, one written down.

    Raises:
        LpafError: there is none of that name, or the file cannot serve.
    """
    path, colon, chosen = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_module(Path(path), chosen)
    if name.endswith((".yaml", ".yml")):
        return _from_yaml(Path(name))
    if name.endswith(".py"):
        raise LpafError(f"--recipe {name}: name a recipe in the file, as {name}:NAME")
    made = RECIPES[name]()
    return Recipe(*made.stages, name=name, summary=summary(name))


def _from_module(path: Path, name: str) -> Recipe:
    if not path.is_file():
        raise LpafError(f"--recipe {path}: there is no such file")
    # A name of its own in sys.modules: dataclasses look there, and a file may be called like ours.
    digest = hashlib.blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()
    known = f"lpaf_recipe_{digest}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[known]
            raise LpafError(
                f"--recipe {path}: the file cannot be run: {_one_line(error)}"
            ) from error
    make = getattr(sys.modules[known], name, None)
    if make is None and name in RECIPES and RECIPES[name].__module__ == known:
        make = RECIPES[name]  # registered under another name than its function's
    if not callable(make):
        raise LpafError(f"--recipe {path}:{name}: the file has no function or recipe {name}")
    try:
        made = make()
        if isinstance(made, Recipe):
            made.check()
    except LpafError as error:
        raise LpafError(f"--recipe {path}:{name}: {error}") from None
    except Exception as error:
        raise LpafError(f"--recipe {path}:{name} cannot be made: {_one_line(error)}") from error
    if not isinstance(made, Recipe):
        raise LpafError(f"--recipe {path}:{name} gives a {type(made).__name__}, not a Recipe")
    return Recipe(*made.stages, name=name, summary=_summary_of(make), digest=_digest(path))


def _one_line(error: BaseException) -> str:
    """An error of somebody's file, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


STAGES: Registry[type[Stage]] = Registry("stage")
for _kind in (FineTune, Prune, PruneGroups, Factorize, Compensate, Tune, MixedTune):
    STAGES.add(_kind.__name__, _kind)


def _from_yaml(path: Path) -> Recipe:
    """`name` and a list of `stages`, each the name of a class or {name: its settings}."""
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LpafError(f"--recipe {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise LpafError(f"--recipe {path} cannot be read: {message}") from None
    if not (isinstance(value, dict) and isinstance(value.get("stages"), list)):
        raise LpafError(f"--recipe {path} has no list of stages: write `stages: [FineTune, ...]`")
    if foreign := set(value) - {"name", "summary", "stages"}:
        raise LpafError(
            f"--recipe {path}: unknown key {min(map(str, foreign))}: use name, summary and stages"
        )
    name = str(value.get("name", path.stem))
    if name in RECIPES:
        raise LpafError(
            f"--recipe {path}: the name {name} is taken by another recipe: choose another"
        )
    stages = [_stage_of(path, entry) for entry in value["stages"]]
    return Recipe(*stages, name=name, summary=" ".join(str(value.get("summary", "")).split()))


def _stage_of(path: Path, entry: Any) -> Stage:
    name: Any = entry
    chosen: Any = {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, chosen = next(iter(entry.items()))
    if not isinstance(name, str) or not isinstance(chosen, Mapping | None):
        raise LpafError(f"--recipe {path}: {entry!r} is neither a stage nor a stage with settings")
    try:
        kind = STAGES[name]
        known = {f.name for f in dataclasses.fields(kind)}
        for field in chosen or {}:
            if field not in known:
                raise LpafError(
                    f"{name} has no setting {field!r}; it has {', '.join(sorted(known))}"
                )
        stage = kind(**{field: _number(value) for field, value in (chosen or {}).items()})
        stage.check()  # the command reads it as a default, and would not say whose it is
        return stage
    except LpafError as error:
        raise LpafError(f"--recipe {path}: {error}") from None


def _number(value: Any) -> Any:
    """`1e-3` is text to YAML, which wants 1.0e-3."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
