"""The ablation grid as a Markdown table, beside what the paper reports.

    python benchmarks/lpaf_table.py [compare.json]

Reads `results/lpaf_grid.json` as `lpaf_grid.py` writes it, or else `results/lpaf_grid_seed*.json`,
as it was written before there was `lpaf compare`. A cell is a mean over the seeds
it was run with, and says how many where that is not all of them; recipes not run are left out.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from lpaf_jax.core.files import read_json

RESULTS = Path(__file__).parent / "results"
RATIOS = (0.5, 0.25, 0.16)
TITLES = {
    "svd-ft": "SVD_Ft",
    "lpaf": "LPAF",
    "lpaf-without-step-1": "LPAF without step 1 (pruning)",
    "lpaf-without-step-2": "LPAF without step 2 (plain SVD)",
    "lpaf-without-step-3": "LPAF without step 3 (plain tuning)",
}
# SST-2 accuracy of BERT-base at 50 / 25 / 16 %, and of the uncompressed model (Ren & Zhu, 2024).
PAPER = {
    "svd-ft": (90.8, 88.9, 85.3),
    "lpaf": (92.4, 90.7, 89.7),
    "lpaf-without-step-1": (91.2, 89.9, 88.4),
    "lpaf-without-step-2": (91.2, 89.2, 88.8),
    "lpaf-without-step-3": (91.4, 89.5, 88.8),
}
PAPER_DENSE = 92.7


# Accuracies before tuning, after it, and the latter's share of the dense model's.
Cells = dict[tuple[str, float], list[tuple[float, float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("comparison", type=Path, nargs="?", help="a compare.json")
    path = parser.parse_args().comparison
    newest = RESULTS / "lpaf_grid.json"
    if path is None and newest.is_file():
        path = newest
    cells, seeds, notes = of_seeds() if path is None else of_comparison(read_json(path))
    print("| | 50 % | 25 % | 16 % | paper, kept of BERT-base on SST-2 |")
    print("|---|---|---|---|---|")
    for recipe in dict.fromkeys([*TITLES, *(recipe for recipe, _ in cells)]):
        if not any((recipe, ratio) in cells for ratio in RATIOS):
            continue
        row = [_cell(cells.get((recipe, ratio), []), seeds) for ratio in RATIOS]
        kept = [f"{100 * x / PAPER_DENSE:.1f}" for x in PAPER.get(recipe, ())]
        paper = f"{' / '.join(kept)} %" if kept else "–"
        print(f"| {TITLES.get(recipe, recipe)} | {' | '.join(row)} | {paper} |")
    for note in notes:
        print(f"\n{note}")


def of_comparison(found: dict[str, Any]) -> tuple[Cells, int, list[str]]:
    """The cells of a compare.json, the number of seeds, and what to say below."""
    cells: Cells = defaultdict(list)
    dense: dict[int, float] = {}
    for row in found["rows"]:
        dense[row["seed"]] = row["dense"]
        figures = row["before_tuning"], row["final"], row["final"] / row["dense"]
        cells[row["recipe"], row["params"]].append(figures)
    notes = [
        f"Seed {seed}: dense {100 * share:.1f} % of {found['test']}; {found['command']}"
        for seed, share in dense.items()
    ]
    return cells, len(dense), notes


def of_seeds() -> tuple[Cells, int, list[str]]:
    """The same of a JSON for each seed, as the grid was written before `lpaf compare`."""
    runs = [read_json(path) for path in sorted(RESULTS.glob("lpaf_grid_seed*.json"))]
    cells: Cells = defaultdict(list)
    for run in runs:
        dense = run["dense"]["accuracy"]
        for cell in run["cells"]:
            before, after = cell["before"]["accuracy"], cell["after"]["accuracy"]
            cells[cell["recipe"], cell["ratio"]].append((before, after, after / dense))
    notes = [
        f"Seed {run['settings']['seed']}: dense {_share(run['dense'])}, "
        f"pruned to {run['settings']['kept']:.0%} {_share(run['pruned'])}; {run['command']}"
        for run in runs
    ]
    return cells, len(runs), notes


def _cell(found: list[tuple[float, float, float]], all_seeds: int) -> str:
    if not found:
        return "not run"
    before, after, kept = (100 * mean(values) for values in zip(*found, strict=True))
    seeds = "" if len(found) == all_seeds else f", of {len(found)} seed"
    return f"{before:.1f} → **{after:.1f}** ({kept:.1f} %{seeds})"


def _share(metrics: dict[str, Any]) -> str:
    return f"{100 * metrics['accuracy']:.1f} % of {metrics['n']}"


if __name__ == "__main__":
    main()
