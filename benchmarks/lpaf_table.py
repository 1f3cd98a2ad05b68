"""The ablation grid as a Markdown table, beside what the paper reports.

    python benchmarks/lpaf_table.py

Reads `results/lpaf_grid_seed*.json` as `lpaf_grid.py` writes them. A cell is a mean over the seeds
it was run with, and says how many where that is not all of them; recipes not run are left out.
"""

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from lpaf_jax.files import read_json

RESULTS = Path(__file__).parent / "results"
RATIOS = (0.5, 0.25, 0.16)
TITLES = {
    "svd-ft": "SVD_Ft",
    "svd-ft-longer": "SVD_Ft, three times as long",
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


def main() -> None:
    runs = [read_json(path) for path in sorted(RESULTS.glob("lpaf_grid_seed*.json"))]
    cells: dict[tuple[str, float], list[tuple[float, float, float]]] = defaultdict(list)
    for run in runs:
        dense = run["dense"]["accuracy"]
        for cell in run["cells"]:
            before, after = cell["before"]["accuracy"], cell["after"]["accuracy"]
            cells[cell["recipe"], cell["ratio"]].append((before, after, after / dense))
    print("| | 50 % | 25 % | 16 % | paper, kept of BERT-base on SST-2 |")
    print("|---|---|---|---|---|")
    for recipe, title in TITLES.items():
        if not any((recipe, ratio) in cells for ratio in RATIOS):
            continue
        row = [_cell(cells[recipe, ratio], len(runs)) for ratio in RATIOS]
        kept = [f"{100 * x / PAPER_DENSE:.1f}" for x in PAPER.get(recipe, ())]
        paper = f"{' / '.join(kept)} %" if kept else "–"
        print(f"| {title} | {' | '.join(row)} | {paper} |")
    for run in runs:
        print(
            f"\nSeed {run['settings']['seed']}: dense {_share(run['dense'])}, "
            f"pruned to {run['settings']['kept']:.0%} {_share(run['pruned'])}; {run['command']}"
        )


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
