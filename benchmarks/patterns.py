"""Which weights each criterion leaves: the paper's Figure 3, on the pruned models of steps.py.

    python benchmarks/steps.py figure-3       # prunes, an hour on two cores
    python benchmarks/patterns.py             # reads what that has left

Means over the 36 matrices, as each run's own page has them, and a picture of one matrix with a
tenth of all weights left.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from provenance import provenance

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.models import compressible, parameters
from lpaf_jax.runs.cells import place_of

mpl.use("Agg")
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "patterns.json"
CELLS = {
    "sensitivity": (50, 25, 10),
    "first-order": (50, 25, 10),
    "magnitude": (50, 10),
}
SHOWN = "bert.encoder.layer.{}.attention.self.query.kernel"


def folder(work: Path, criterion: str, kept: int) -> Path:
    return work / "runs" / place_of(f"{criterion} to {kept} %, svd", 0.16, 0)


def row(run: Path) -> dict[str, float]:
    found = read_json(run / "analysis.json")["matrices"]
    pruned = [each["pruned"] for each in found]
    names = ("effective_rank", "energy_rank", "empty_rows", "empty_columns")
    means = {name: float(np.mean([each[name] for each in pruned])) for name in names}
    stages = read_json(run / "metrics.json")["stages"]
    dense = float(np.mean([each["dense"]["effective_rank"] for each in found]))
    accuracies = {"pruned": stages["pruned"]["accuracy"], "svd": stages["final"]["accuracy"]}
    return means | {"dense_effective_rank": dense} | accuracies


def draw(work: Path, layer: int, out: Path) -> None:
    """The masks of one matrix, side by side."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(CELLS), figsize=(9, 3.4))
    path = SHOWN.format(layer)
    for axis, criterion in zip(axes, CELLS, strict=True):
        model = load_model(folder(work, criterion, 10) / "stages" / "pruned")
        mask = np.asarray(compressible(parameters(model))[path]) != 0
        axis.imshow(mask, cmap="Greys", interpolation="nearest")
        empty = np.mean(~mask.any(axis=1)), np.mean(~mask.any(axis=0))
        axis.set_title(f"{criterion}\n{empty[0]:.0%} of rows, {empty[1]:.0%} of columns empty")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(out, dpi=80, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/steps"))
    parser.add_argument("--layer", type=int, default=3, help="whose query matrix is drawn")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = [
        {"criterion": criterion, "kept": kept} | row(folder(args.work, criterion, kept))
        for criterion, shares in CELLS.items()
        for kept in shares
    ]
    write_json(RESULTS, {"rows": rows} | provenance())
    draw(args.work, args.layer, RESULTS.with_suffix(".png"))
    heads = ("criterion", "weights left", "pruned", "SVD at 16 %", "effective rank")
    print(f"| {' | '.join(heads)} | for 90 % of the energy | empty rows, columns |")
    print("|---" * (len(heads) + 2) + "|")
    for each in rows:
        cells = [each["criterion"], f"{each['kept']} %", f"{each['pruned']:.1%}"]
        cells += [f"{each['svd']:.1%}", f"{each['effective_rank']:.0f}"]
        cells += [f"{each['energy_rank']:.0f}"]
        cells += [f"{each['empty_rows']:.1%}, {each['empty_columns']:.1%}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
