"""What was measured of each recipe, from the committed results in benchmarks/results/."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lpaf_jax.recipes import RECIPES
from lpaf_jax.report.facts import model_name, task_name
from lpaf_jax.report.markup import text
from lpaf_jax.report.measures import MEASURES, Measure

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


class Figure(NamedTuple):
    """One finished model.

    Attributes:
        recipe: by its registered name.
        on: model and data, as a heading.
        metric: key of MEASURES.
        params: share of the compressible numbers that was asked for.
        dense, final: the metric before and after.
        command: what made it.
        commit: the state of the code that it was made with.
        file: where it lies in RESULTS.
    """

    recipe: str
    on: str
    metric: str
    params: float
    dense: float
    final: float
    command: str
    commit: str
    file: str


def figures(folder: Path = RESULTS) -> list[Figure]:
    """All that the results hold of recipes by their registered names."""
    found: list[Figure] = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for read in (_run, _compared, _grid, _decoders):
            found += read(result, path.name)
    return found


def measured(recipe: str, found: list[Figure]) -> str:
    """A list in Markdown, an item for each command; empty where there is no figure."""
    groups: dict[tuple[str, ...], dict[float, list[Figure]]] = {}
    for one in found:
        if one.recipe == recipe:
            key = (one.on, one.metric, one.command, one.commit, one.file)
            groups.setdefault(key, {}).setdefault(one.params, []).append(one)
    if not groups:
        return ""
    items = []
    for (on, metric, command, commit, file), sizes in groups.items():
        measure = MEASURES[metric]
        every = [one for ones in sizes.values() for one in ones]
        before = measure.show(_mean([one.dense for one in every]))
        runs = max(map(len, sizes.values()))
        seeds = f", means of {runs} seeds" if runs > 1 else ""
        told = ", ".join(
            f"at {100 * params:g} % {_after(measure, sizes[params])}"
            for params in sorted(sizes, reverse=True)
        )
        figure = text(f"{measure.name}{seeds}: {before} before; {told}.")
        items.append(f"- {on}, {figure} `{command}`, commit {commit[:7]}, `{file}`")
    head = "Measured, by the share of the compressible numbers that is left:"
    return f"{head}\n\n" + "\n".join(items) + "\n"


def _after(measure: Measure, ones: list[Figure]) -> str:
    shown = measure.show(_mean([one.final for one in ones]))
    if measure.less:
        return f"**{shown}**"
    return f"**{shown}** ({100 * _mean([one.final / one.dense for one in ones]):.1f} % kept)"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _on(model: str, task: str) -> str:
    return f"{model_name({'model': model})} on {task_name({'task': task})}"


def _run(result: dict[str, Any], file: str) -> Iterator[Figure]:
    """metrics.json of `lpaf compress`."""
    if "stages" not in result:
        return
    metric = result.get("metrics", ["accuracy"])[0]
    dense, final = (result["stages"][stage][metric] for stage in ("dense", "final"))
    on, params = _on(result["model"], result["task"]), result["settings"]["params"]
    source = result["command"], result["commit"], file
    yield Figure(result["recipe"], on, metric, params, dense, final, *source)


def _compared(result: dict[str, Any], file: str) -> Iterator[Figure]:
    """compare.json of `lpaf compare`.

    A recipe that a benchmark put together itself has no summary there, and its name means nothing
    elsewhere.
    """
    told = result.get("recipes", {})
    registered = {name for name in RECIPES if name in told and told[name]["summary"]}
    for row in result.get("rows", []) if registered else []:
        if row["recipe"] not in registered or row["final"] is None:
            continue
        settings = result["settings"]
        on = _on(settings["model"], result.get("task", settings["task"]))
        numbers = row["params"], row["dense"], row["final"]
        command, commit = (row.get(key, result.get(key)) for key in ("command", "commit"))
        yield Figure(row["recipe"], on, row["metric"], *numbers, command, commit, file)


def _grid(result: dict[str, Any], file: str) -> Iterator[Figure]:
    """The cells of lpaf_grid.py; what `lpaf intrinsic` tried has no model before it."""
    for cell in result.get("cells", []) if "dense" in result else []:
        on = _on(result["settings"]["model"], result["settings"]["task"])
        dense, final = result["dense"]["accuracy"], cell["after"]["accuracy"]
        source = result["command"], cell["commit"], file
        yield Figure(cell["recipe"], on, "accuracy", cell["ratio"], dense, final, *source)


def _decoders(result: dict[str, Any], file: str) -> Iterator[Figure]:
    """Rows of decoders, each with the `lpaf compress` that made it."""
    for row in result.get("rows", []):
        command = row.get("command", "") if isinstance(row, dict) else ""
        given = dict(re.findall(r"--([\w-]+) (\S+)", command))
        if not command.startswith("lpaf compress ") or "perplexity" not in row:
            continue
        on = _on(shlex.split(command)[2], given["held-out"])
        both = row["perplexity"]["dense"], row["perplexity"]["final"]
        params = float(given["params"])
        commit = row.get("commit", result.get("commit"))
        yield Figure(given["recipe"], on, "perplexity", params, *both, command, commit, file)

