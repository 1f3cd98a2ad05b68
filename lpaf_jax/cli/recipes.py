"""`lpaf recipes`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:  # models take a second to import, and --help needs none
    from lpaf_jax.importance import Importance
    from lpaf_jax.recipes import Recipe
    from lpaf_jax.solvers import Solver

_NEEDS = {
    "loss": "gradients (from a task or a decoder's next tokens)",
    "pruning": "a pruning stage",
    "inputs": "texts",
    "streams": "a decoder without a task",
}


@dataclass(frozen=True)
class Recipes:
    """List all recipes, importances, solvers and rank rules, or describe one recipe."""

    name: Positional[
        Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(optional)")]
    ] = None
    """A recipe, to see its stages with their settings."""
    json: bool = False
    """Print one JSON object instead of the tables."""

    def run(self) -> None:
        """Print."""
        if self.name is None:
            self._list()
        else:
            self._describe(self.name)

    def _describe(self, name: str) -> None:
        from lpaf_jax.recipes import make_recipe
        from lpaf_jax.report.sections import NOT_GIVEN, as_typed
        from lpaf_jax.runs.settings import of_texts

        recipe = make_recipe(name)
        settings = [(step, vars(stage)) for step, stage in recipe.steps()]
        if needs(recipe).startswith("a text"):  # there it is never fine-tuned
            settings = [(step, vars(stage)) for step, stage in of_texts(recipe).steps()[1:]]
        if self.json:
            from lpaf_jax.core.files import json_text

            found = {"summary": recipe.summary, "needs": needs(recipe), "stages": dict(settings)}
            print(json_text(found, indent=2))
            return
        print(f"{recipe.summary}\nNeeds {needs(recipe)}.")
        for step, fields in settings:
            print(f"\nStage {step}:")
            for field, value in fields.items():
                flag, text = as_typed(field, value)
                print(f"  {flag} {text if text != NOT_GIVEN else f'({NOT_GIVEN})'}")

    def _list(self) -> None:
        from lpaf_jax.importance import IMPORTANCES
        from lpaf_jax.ranks import RANK_RULES
        from lpaf_jax.recipes import RECIPES, make_recipe, summary
        from lpaf_jax.solvers import SOLVERS

        parts = {
            "recipes": {name: summary(name) for name in RECIPES},
            "importances": {name: _of_importance(each) for name, each in IMPORTANCES.items()},
            "solvers": {name: _of_solver(each) for name, each in SOLVERS.items()},
            "rank rules": {name: each.summary for name, each in RANK_RULES.items()},
        }
        if self.json:
            from lpaf_jax.core.files import json_text

            print(json_text(parts, indent=2))
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table

        console = Console(highlight=False, markup=False, emoji=False)
        flags = {"importances": "--importance", "solvers": "--solver", "rank rules": "--ranks"}
        for title, choices in parts.items():
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column(flags.get(title, "--recipe"), no_wrap=True)
            table.add_column("What it does")
            for name, text in choices.items():
                lines = text
                if title == "recipes":
                    recipe = make_recipe(name)
                    stages = " → ".join(step for step, _ in recipe.steps())
                    lines = f"{text}\nStages: {stages}. Needs {needs(recipe)}."
                table.add_row(name, lines)
            console.print(table)


def _of_importance(importance: "Importance") -> str:
    needs = ", ".join(_NEEDS[need] for need in _NEEDS if need in importance.needs)
    parts = [importance.summary, importance.source, f"needs {needs}" if needs else ""]
    return "; ".join(filter(None, parts))


def _of_solver(solver: "Solver") -> str:
    return solver.summary + ("; needs a bias in every layer" if solver.moves_bias else "")


def needs(recipe: "Recipe") -> str:
    """What a recipe cannot do without, in words."""
    from lpaf_jax.importance import IMPORTANCES
    from lpaf_jax.ranks import RANK_RULES
    from lpaf_jax.solvers import SOLVERS
    from lpaf_jax.stages import Factorize, Prune
    from lpaf_jax.stages.shrink import Shrink

    cut = next(stage for stage in recipe.stages if isinstance(stage, Shrink))
    if cut.logs is not None or any(isinstance(stage, Prune) for stage in recipe.stages):
        return "a task"
    assert isinstance(cut, Factorize)
    gradients = "loss" in IMPORTANCES[cut.importance].needs or RANK_RULES[cut.ranks].needs_spectra
    found = "a task, or a text for a decoder" if gradients else "a task or a text"
    alone = "streams" in IMPORTANCES[cut.importance].needs or cut.pruned_to < 1
    if alone or cut.channels != "none":
        found = "a text for a decoder"
    return found + (", and a bias in every layer" if SOLVERS[cut.solver].moves_bias else "")
