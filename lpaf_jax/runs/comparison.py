"""Several recipes on one model and data: an ordinary run for every cell, and what they come to."""

import gc
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lpaf_jax.core.errors import LpafError, SettingError, mended_by
from lpaf_jax.core.files import read_json, take_lock, write_json
from lpaf_jax.core.ranges import demand_choice
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs.cells import Cell, about, command, place_of, plan
from lpaf_jax.runs.settings import Settings
from lpaf_jax.tasks.options import DEFAULTS

FILE = "compare.json"
_BASELINE = "svd-ft"
# The inputs that all cells of a seed must have read alike, by their names in a fingerprint.
_READ = (
    *("training examples", "test examples", "weights"),
    *("calibration text", "held-out text"),
)


def compare(
    model: Path | str,
    *,
    out: Path | str,
    recipes: Sequence[str | Recipe],
    task: Path | str | None = None,
    params: Sequence[float] = (0.5,),
    seeds: Sequence[int] = (0,),
    baseline: str | None = None,
    **chosen: Any,
) -> dict[str, Any]:
    """Run every recipe at every size with every seed, and write what they come to.

    Cells are runs in `out`/runs; those of one seed share the stages that are the same, one
    fine-tuned model above all. A comparison that was killed goes on, one that is finished gains
    the recipes, sizes and seeds that it lacks. A cell that fails is named and does not stop the
    others.

    Args:
        model: `minilm`, `smollm2`, a folder, a .gguf file, or a hub id.
        out: folder for compare.json, compare.html and the runs.
        recipes: names as `lpaf compress --recipe` takes them, or `Recipe` objects.
        task: a task's name or a file; None where `calibration` names a text.
        params: shares of the compressible numbers to keep.
        seeds: of the runs.
        baseline: the recipe that the others are tested against; svd-ft if it is among them, else
            the first one.
        chosen: fields of `lpaf_jax.tasks.options.Options`, and settings of stages, each for those
            recipes that have it. `keep` says what is left of the stages in the end.

    Returns:
        what `compare.json` holds; `failed` lists the cells that failed, with why.

    Raises:
        LpafError: something asked for cannot be done, said before the first cell runs; or no cell
            could begin.
    """
    folder = Path(out)
    keep = chosen.pop("keep", "final")
    cells = plan(model, folder, task, recipes, params, seeds, chosen)
    _check_keep(cells[0].settings, keep)
    header = about(cells, chosen)
    held = _held(folder, header)
    chief = _baseline(baseline, [cell.recipe for cell in cells], held)
    header |= {"baseline": chief, "keep": keep, "command": command(cells, folder, chief, chosen)}
    _check_cells(cells)
    with _locked(folder):
        found = _run_all(folder, cells, header, held)
        for place in _runs(folder / "runs"):
            if keep == "final" and _finished(place):
                shutil.rmtree(place / "stages", ignore_errors=True)
    return found


def _check_keep(settings: Settings, keep: str) -> None:
    import dataclasses

    kept = dataclasses.replace(settings, keep=keep)  # type: ignore[arg-type]
    demand_choice(kept, "keep", ("all", "final"))


def _baseline(chosen: str | None, recipes: list[str], held: Mapping[str, Any]) -> str:
    recipes = [*recipes, *held.get("recipes", {})]
    if chosen is None and held.get("baseline") in recipes:
        chosen = held["baseline"]
    if chosen is None:
        return _BASELINE if _BASELINE in recipes else recipes[0]
    if chosen not in recipes:
        known = ", ".join(dict.fromkeys(recipes))
        raise SettingError(("baseline",), f"{chosen!r} is not among the recipes: {known}")
    return chosen


def _held(folder: Path, header: dict[str, Any]) -> dict[str, Any]:
    """What the comparison in the folder has so far.

    Raises:
        LpafError: it is another one, or something else lies there.
    """
    if folder.exists() and not folder.is_dir():
        raise LpafError(f"--out {folder} is a file; name a folder")
    path = folder / FILE
    if not path.is_file():
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        if foreign := [name for name in names if not name.startswith(".")]:
            raise LpafError(
                f"--out {folder} is not empty and has no comparison of lpaf (it holds "
                f"{foreign[0]}): name another folder"
            )
        return {}
    with mended_by(f"name another folder, or delete {folder}"):
        held = read_json(path)
        if not (isinstance(held, dict) and {"settings", "rows", "recipes"} <= held.keys()):
            raise LpafError(f"{path} is not a comparison of lpaf")
    ours = header["settings"]
    # What came into being since is there what it is where it is not given.
    theirs = {name: DEFAULTS[name] for name in ours if name in DEFAULTS} | held["settings"]
    differing = [
        f"{name} {theirs.get(name, 'not given')!r} there, {ours.get(name, 'not given')!r} now"
        for name in theirs | ours
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise LpafError(
            f"--out {folder} holds another comparison ({', '.join(differing)}): name another folder"
        )
    return held


def _check_cells(cells: list[Cell]) -> None:
    """Refuse, before anything runs, what a run of a cell would: a folder with other settings."""
    from lpaf_jax.runs.run import Run

    for cell in cells:
        Run(cell.settings)


def _run_all(
    folder: Path, cells: list[Cell], header: dict[str, Any], held: dict[str, Any]
) -> dict[str, Any]:
    from lpaf_jax.core.progress import Progress

    progress = Progress(folder, cells[0].settings.quiet)
    failed: dict[Cell, str] = {}
    (folder / "runs").mkdir(exist_ok=True)
    found = _write(folder, cells, header, held, failed)
    todo = [cell for cell in cells if not _finished(cell.folder)]
    if not todo:
        progress.say(f"{folder}: all {len(cells)} cells are finished")
    for number, cell in enumerate(todo, start=1):
        progress.say(f"--- cell {number} of {len(todo)}: {cell.called}")
        try:
            _run_cell(cell)
        except Exception as error:  # of a defect, the log of the run has the traceback
            defect = "" if isinstance(error, LpafError) else f"{type(error).__name__}: "
            failed[cell] = f"{defect}{error}"
            progress.say(f"--- failed: {cell.called}: {failed[cell]}")
            begun = any((c.folder / "settings.json").is_file() for c in cells)
            if isinstance(error, LpafError) and not begun:  # so it is with what is read
                raise
        found = _write(folder, cells, header, held, failed)
    return found


def _runs(folder: Path) -> list[Path]:
    """The folders of all runs, also of those that are not asked for now."""
    return sorted(place for place in folder.iterdir() if not place.name.startswith("."))


def _finished(folder: Path) -> bool:
    return (folder / "metrics.json").is_file()


def _run_cell(cell: Cell) -> None:
    """Make a cell of what others of its seed have made already."""
    import dataclasses

    import jax

    from lpaf_jax.runs.pipeline import run

    lenders = tuple(
        place
        for place in _runs(cell.folder.parent)
        if place != cell.folder
        and place.name.endswith(f"-{cell.seed}")
        and (place / "settings.json").is_file()
        and (place / "stages").is_dir()
    )
    try:
        run(dataclasses.replace(cell.settings, reuse=(*lenders, *cell.settings.reuse)))
    finally:
        # Many cells in one process: their compiled steps would fill the memory.
        jax.clear_caches()
        gc.collect()


def _write(
    folder: Path,
    cells: list[Cell],
    header: dict[str, Any],
    held: dict[str, Any],
    failed: Mapping[Cell, str],
) -> dict[str, Any]:
    """Gather the finished cells, also those of a former call, and write both files."""
    from lpaf_jax.report.compare import write_comparison
    from lpaf_jax.report.compare_facts import gather

    keys = [(cell.recipe, cell.params, cell.seed) for cell in cells]
    keys += [
        key
        for row in held.get("rows", [])
        if (key := (row["recipe"], row["params"], row["seed"])) not in keys
    ]
    runs, broken = {}, []
    for key in keys:
        place = folder / "runs" / place_of(*key)
        if not _finished(place):
            continue
        with mended_by(f"delete {place} and run the same command again"):
            runs[key] = read_json(place / "metrics.json"), read_json(place / "settings.json")
    for key, (_, settings) in list(runs.items()):
        first, other = next((k, s) for k, (_, s) in runs.items() if k[2] == key[2])
        if parts := _read_otherwise(settings["fingerprint"], other["fingerprint"]):
            del runs[key]
            why = (
                f"it read other {', '.join(parts)} than {first[0]} at {100 * first[1]:g} %: the "
                "files have changed in between"
            )
            broken.append(dict(zip(("recipe", "params", "seed"), key, strict=True)) | {"why": why})
    chief = header["baseline"]
    found = {
        "settings": header["settings"],
        "recipes": held.get("recipes", {}) | header["recipes"],
        "baseline": chief,
        "command": header["command"],
        **gather(runs, chief),
        "failed": [
            {"recipe": c.recipe, "params": c.params, "seed": c.seed, "why": why}
            for c, why in failed.items()
        ]
        + broken,
        "missing": sum(not _finished(cell.folder) for cell in cells),
    }
    write_json(folder / FILE, found)
    write_comparison(folder)
    return found


def _read_otherwise(ours: Any, theirs: Any) -> list[str]:
    """Inputs that two cells do not share, of those whose digests both have."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return []
    if any("order of the model's classes" in each for each in (ours, theirs)):
        return []  # the same examples, numbered otherwise
    return [name for name in _READ if ours.get(name) != theirs.get(name)]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other comparisons out of the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise LpafError(f"--out {folder} cannot be written: {error.strerror}") from None
    try:
        take_lock(opened, folder, "comparison")
        yield
    finally:
        os.close(opened)
