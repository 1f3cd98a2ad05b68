"""Which weights each criterion leaves: the paper's Figure 3, on the pruned models of steps.py.

    python benchmarks/steps.py figure-3         # prunes, an hour on two cores
    python benchmarks/patterns.py               # the table, of what that has left
    python benchmarks/patterns.py --masks       # prunes three models again, for the picture: 20 min
    python benchmarks/patterns.py --picture     # draws it, of the masks that are on record

Means over the 36 matrices, as each run's own page has them, and a picture of one matrix with a
tenth of all weights left.
"""

import argparse
import base64
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.models import parameters
from lpaf_jax.recipes import Recipe
from lpaf_jax.report.matrix_plots import unpack
from lpaf_jax.report.svg import png
from lpaf_jax.runs.cells import place_of
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.stages import Factorize, FineTune, Prune, Tune

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "patterns.json"
CELLS = {
    "sensitivity": (50, 25, 10),
    "first-order": (50, 25, 10),
    "magnitude": (50, 10),
}
SHOWN = "bert.encoder.layer.3.attention.self.query.kernel"


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


def masks(work: Path) -> dict[str, Any]:
    """What each criterion leaves of one matrix, bit by bit, as runs store it."""
    found: dict[str, Any] = {"matrix": SHOWN}
    cut = Factorize(importance="none", solver="plain", ranks="uniform")
    for criterion in CELLS:
        step: Any = {"criterion": criterion, "kept": 0.1, "prune_epochs": 3.0}
        prune = Prune(prune_from="pretrained", **step)
        recipe = Recipe(FineTune(), prune, cut, Tune(tune_epochs=0), name=f"{criterion} to 10 %")
        out = work / criterion
        lenders = [work / other for other in found if other in CELLS]  # of the fine-tuned model
        chosen: dict[str, Any] = {"preset": "quick", "reuse": tuple(lenders)}
        compress("minilm", task="rotten_tomatoes", out=out, recipe=recipe, params=0.16, **chosen)
        mask = parameters(load_model(out / "stages" / "pruned"))[SHOWN] != 0
        packed = base64.b64encode(np.packbits(np.asarray(mask)).tobytes()).decode()
        found[criterion] = {"shape": mask.shape, "kept": packed}
    return found | provenance()


def draw(found: dict[str, Any], figure: Any) -> None:
    """The masks, side by side: a white dot is a weight that is gone."""
    for axes, criterion in zip(figure.subplots(1, len(CELLS)), CELLS, strict=True):
        mask = unpack(found[criterion], "kept")
        axes.imshow(mask, cmap="Greys", interpolation="nearest")
        empty = (f"{np.mean(~mask.any(axis=axis)):.0%}" for axis in (1, 0))
        axes.set_title("{}\n{} of rows, {} of columns empty".format(criterion, *empty))
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("outputs")
        axes.set_ylabel("inputs")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/steps"))
    parser.add_argument("--masks", action="store_true", help="prune for the picture, and draw it")
    parser.add_argument("--picture", action="store_true", help="draw it again")
    args = parser.parse_args()
    held = read_json(RESULTS) if RESULTS.is_file() else {}
    if args.masks:
        held["masks"] = masks(args.work.parent / "patterns")
        write_json(RESULTS, held)
    if args.masks or args.picture:
        shown = held["masks"]
        png(RESULTS.with_suffix(".png"), 720, 270, lambda figure: draw(shown, figure))
        return
    rows: list[dict[str, Any]] = [
        {"criterion": criterion, "kept": kept} | row(folder(args.work, criterion, kept))
        for criterion, shares in CELLS.items()
        for kept in shares
    ]
    write_json(RESULTS, held | {"rows": rows} | provenance())
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
