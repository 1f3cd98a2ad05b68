"""Where numbers are best left out, of the table of embeddings or the matrices, and in which form.

    python benchmarks/embeddings.py              # thirteen cells of some minutes on two cores
    python benchmarks/embeddings.py --cells 1 2  # the first two
    python benchmarks/embeddings.py --show       # print what is there, run nothing

MiniLM and Rotten Tomatoes, preset `quick`, matrices cut as in `kfac-svd` where nothing else is
said, tuned as in `lpaf-plus`.
The table is half of MiniLM: sizes are of the whole model. It goes on where it was if it is killed.
"""

import argparse
from pathlib import Path
from typing import Any

from provenance import provenance

from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs.comparison import compare
from lpaf_jax.stages import Factorize, FineTune, MixedTune, Prune, Tune

RESULTS = Path(__file__).parent / "results" / "embeddings.json"
TUNE = Tune(tune_lr=1e-4, distil=1.0, distil_hidden=1.0, temperature=2.0)


def matrices(name: str, width: int | None = None) -> Recipe:
    cut = Factorize(importance="two-sided", solver="metric", ranks="loss", embeddings=width)
    return Recipe(FineTune(), cut, TUNE, name=name)


def table(name: str, width: float, form: Any = "low-rank") -> Recipe:
    cut = Factorize(
        importance="none", solver="plain", ranks="share", embeddings=width, embeddings_as=form
    )
    return Recipe(FineTune(), cut, TUNE, name=name)


def paper(width: int) -> Recipe:
    steps = (FineTune(), Prune(), Factorize(embeddings=width), MixedTune())
    return Recipe(*steps, name=f"lpaf, table to {width}")


def unweighted(name: str, solver: str) -> Recipe:
    cut = Factorize(importance="none", solver=solver, ranks="share")
    return Recipe(FineTune(), cut, TUNE, name=name)


# A recipe, and the share of the compressible weights that it is to keep.
CELLS = [
    (table("table to 128", 128), 1.0),
    (matrices("matrices"), 0.25),
    (matrices("both, table to 128", 128), 0.25),
    # Other forms at the size of the second one, or, of the table, as near to it as they come.
    (unweighted("matrices, plain SVD", "plain"), 0.25),
    (unweighted("matrices, Kronecker sums", "kronecker"), 0.25),
    (table("table, a train a token", 0.42, "trains"), 1.0),
    (table("table, Kronecker products", 0.34, "kronecker"), 1.0),
    (matrices("both, table to 128", 128), 0.76),
    (matrices("matrices"), 0.04),
    (matrices("both, table to 64", 64), 0.16),
    # At the size of the third one, by the paper's own recipe.
    (paper(128), 0.25),
    (table("table, Kronecker sums", 0.34, "kronecker-sums"), 1.0),
    # At the size of the second one.
    (paper(256), 0.609),
]


def show(rows: list[dict[str, Any]]) -> None:
    """Largest first, as Markdown."""
    print("| | matrices | whole model | file | before tuning | final | validation | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: -row["total_params_ratio"]):
        shares = (row[f"{part}_params_ratio"] for part in ("encoder", "total"))
        cells = [row["recipe"], *(f"{100 * share:.1f} %" for share in shares)]
        cells.append(f"{row['bytes'] / 1e6:.1f} MB")
        scores = (row[key] for key in ("before_tuning", "final", "validation"))
        cells += [f"{100 * score:.1f} %" for score in scores]
        cells.append("" if row["seconds"] is None else f"{row['seconds']:.0f}")
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    every = range(1, len(CELLS) + 1)
    parser.add_argument("--cells", type=int, nargs="+", choices=every, default=every, metavar="N")
    parser.add_argument("--work", type=Path, default=Path("runs/embeddings"))
    args = parser.parse_args()
    if not args.show:
        chosen: dict[str, Any] = {"task": "rotten_tomatoes", "out": args.work, "preset": "quick"}
        for recipe, params in (CELLS[number - 1] for number in args.cells):
            found = compare("minilm", recipes=[recipe], params=[params], keep="all", **chosen)
            held = read_json(RESULTS)["rows"] if RESULTS.is_file() else []
            cell = (recipe.name, params)
            rows = [row for row in held if (row["recipe"], row["params"]) != cell]
            rows += [
                row | provenance()
                for row in found["rows"]
                if (row["recipe"], row["params"]) == cell
            ]
            facts = {name: found[name] for name in ("settings", "versions", "threads", "recipes")}
            write_json(RESULTS, {**facts, "rows": rows})
    show(read_json(RESULTS)["rows"])


if __name__ == "__main__":
    main()
