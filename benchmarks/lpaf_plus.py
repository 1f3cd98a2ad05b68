"""The recipe `lpaf-plus` at every size, beside the paper's, on sentences from elsewhere, too.

    python benchmarks/sentences.py --rated vaderSentiment-3.3.2.tar.gz
    python benchmarks/lpaf_plus.py                       # Rotten Tomatoes, three seeds
    python benchmarks/lpaf_plus.py --task imdb           # the same recipe, long texts
    python benchmarks/lpaf_plus.py --task runs/ratings.tsv    # a regression
    python benchmarks/lpaf_plus.py --dense               # the dense model, tuned as long

All are `lpaf compare` with six epochs of tuning, and go on where they were if they are killed. The
first one runs `lpaf` and `svd-ft` at 16 % as well, with as many steps, and judges the models of
`lpaf-plus` by sentences that chose nothing: more of Rotten Tomatoes, and reviews of products.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance
from rich.console import Console

from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.data import sign_flip
from lpaf_jax.evaluation.serve import load_predictor
from lpaf_jax.recipes import Recipe, make_recipe
from lpaf_jax.report.compare import print_comparison
from lpaf_jax.runs.cells import place_of
from lpaf_jax.runs.comparison import compare
from lpaf_jax.stages import Prune

RESULTS = Path(__file__).parent / "results"
ELSEWHERE = {kind: Path(f"runs/{kind}.tsv") for kind in ("films", "products")}
RECIPE, OTHERS, BESIDE = "lpaf-plus", ["lpaf", "svd-ft"], 0.16


def as_long() -> Recipe:
    """The tuning of `lpaf-plus` for a model whose matrices all stay as they are."""
    stages = (each for each in make_recipe(RECIPE).stages if not isinstance(each, Prune))
    return Recipe(*stages, name="dense, as long")


def elsewhere(kind: str, found: dict[str, Any], work: Path) -> list[dict[str, Any]]:
    """How every model does on sentences from elsewhere, and each size over all seeds."""
    _, *lines = ELSEWHERE[kind].read_text(encoding="utf-8").splitlines()
    texts, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
    wanted = np.array(["positive" if label == "1" else "negative" for label in labels])

    def right(place: Path, stage: str) -> np.ndarray:
        predictor = load_predictor(place, stage=stage)
        answers: np.ndarray = np.array([said.answer for said in predictor.predict(texts)]) == wanted
        return answers

    dense: dict[int, np.ndarray] = {}
    of: dict[float, list[dict[str, Any]]] = {}
    differences: dict[float, list[np.ndarray]] = {}
    for row in (each for each in found["rows"] if each["recipe"] == RECIPE):
        place = work / "runs" / place_of(row["recipe"], row["params"], row["seed"])
        seed, params = row["seed"], row["params"]
        if seed not in dense:
            dense[seed] = right(place, "dense")
        final = right(place, "final")
        figures = {"seed": seed, "dense": float(dense[seed].mean()), "final": float(final.mean())}
        of.setdefault(params, []).append(figures)
        differences.setdefault(params, []).append(final.astype(int) - dense[seed])
    return [
        {
            "kind": kind,
            "params": params,
            "n": len(wanted),
            "seeds": rows,
            "points": 100 * float(np.mean(differences[params])),
            "p": sign_flip(np.sum(differences[params], axis=0)),
        }
        for params, rows in of.items()
    ]


def show(kept: dict[str, Any]) -> None:
    """The means over seeds, as Markdown."""
    against = {
        (each["recipe"], each["params"]): each
        for each in kept["pooled"]
        if each["against"] == "dense"
    }
    beyond = {(each["kind"], each["params"]): each for each in kept.get("elsewhere", ())}
    print("| recipe | numbers | before tuning | kept | points (p) | films | products | seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for recipe, params in dict.fromkeys((r["recipe"], r["params"]) for r in kept["rows"]):
        rows = [r for r in kept["rows"] if (r["recipe"], r["params"]) == (recipe, params)]
        pooled = against.get((recipe, params))  # none of a regression
        shares = [
            100 * float(np.mean([row[key] / row["dense"] for row in rows]))
            for key in ("before_tuning", "final")
        ]
        away = [beyond.get((kind, params)) if recipe == RECIPE else None for kind in ELSEWHERE]
        cells = [
            recipe,
            f"{100 * params:g} %",
            *(f"{share:.1f} %" for share in shares),
            "" if pooled is None else f"{pooled['points']:+.2f} ({pooled['p']:.3f})",
            *("" if x is None else f"{x['points']:+.2f} ({x['p']:.3f})" for x in away),
            str(len(rows)),
        ]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="rotten_tomatoes")
    parser.add_argument("--dense", action="store_true", help="tune the dense model as long")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--tune-epochs", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--params", type=float, nargs="+")
    parser.add_argument("--work", type=Path, default=Path("runs"))
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    own = args.task == "rotten_tomatoes"
    name = "lpaf_plus" + ("" if own else f"_{Path(args.task).stem}")
    if args.dense:
        own, name = False, f"{name}_dense"
    if args.show:
        show(read_json(RESULTS / f"{name}.json"))
        return
    chosen: dict[str, Any] = {"task": args.task, "preset": args.preset, "keep": "all"}
    chosen["tune_epochs"] = args.tune_epochs
    if own:
        for path in ELSEWHERE.values():
            if not path.is_file():
                parser.error(f"{path} is missing: python benchmarks/sentences.py makes it")
    elif Path(args.task).is_file():
        chosen["regression"] = True
    work = args.work / name
    params = args.params or ([0.5, 0.25, 0.16, 0.1, 0.06, 0.04] if own else [0.25, 0.16, 0.1])
    seeds = args.seeds or ([0, 1, 2] if own else [0])
    chosen |= {"out": work, "seeds": seeds}
    recipe = as_long() if args.dense else RECIPE
    found = compare("minilm", recipes=[recipe], params=[1.0] if args.dense else params, **chosen)
    if own:
        found = compare("minilm", recipes=OTHERS, params=[BESIDE], baseline=RECIPE, **chosen)
    kept = read_json(work / "compare.json") | provenance()
    if own:
        kept["elsewhere"] = [row for kind in ELSEWHERE for row in elsewhere(kind, found, work)]
    write_json(RESULTS / f"{name}.json", kept)
    console = Console(highlight=False, markup=False, emoji=False)
    print_comparison(found, console)
    show(kept)


if __name__ == "__main__":
    main()
