"""`lpaf recipes`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipes:
    """List every method: the problem it solves, its source, and what it is made of."""

    json: bool = False
    """Print one JSON object instead of the tables."""

    def run(self) -> None:
        """Print."""
        from lpaf_jax.importance import IMPORTANCES
        from lpaf_jax.ranks import RANK_RULES
        from lpaf_jax.recipes import RECIPES, make_recipe, summary
        from lpaf_jax.solvers import SOLVERS

        parts = {
            "recipes": {name: summary(name) for name in RECIPES},
            "importances": {name: each.summary for name, each in IMPORTANCES.items()},
            "solvers": {name: each.summary for name, each in SOLVERS.items()},
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
                    stages = " → ".join(step for step, _ in make_recipe(name).steps())
                    lines = f"{text}\nStages: {stages}"
                table.add_row(name, lines)
            console.print(table)
