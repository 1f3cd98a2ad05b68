"""Adapters that make up for a cut: during it, after it, or not, in as many steps.

    python benchmarks/compensation.py           # twenty cells of some minutes on two cores
    python benchmarks/compensation.py --show    # print what is there, run nothing

MiniLM and Rotten Tomatoes, preset `quick`, two epochs of tuning by the task alone in every row, in
the metric of Fisher's rows or of both sides. All parameters are trained a second time, a batch in
parts one after the other: the same steps in the memory of adapters. It goes on where it was if it
is killed.
"""

import argparse
from pathlib import Path
from typing import Any

from provenance import provenance

from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs.cells import place_of
from lpaf_jax.runs.comparison import compare
from lpaf_jax.stages import Compensate, Factorize, FineTune, Tune

RESULTS = Path(__file__).parent / "results" / "compensation.json"
EPOCHS, RANK, PARTS = 2.0, 8, 4
CUTS: dict[str, dict[str, Any]] = {
    "rows": {"importance": "fisher-rows", "solver": "metric", "ranks": "uniform"},
    "two-sided": {"importance": "two-sided", "solver": "metric", "ranks": "loss"},
}


def recipes(cuts: list[str]) -> list[Recipe]:
    found = []
    for name in cuts:
        cut = CUTS[name]
        during = Compensate(**cut, lora=RANK, lora_epochs=0.8 * EPOCHS)
        lora = Tune(lora=RANK, tune_epochs=EPOCHS)
        in_turn = Tune(lora=RANK, tune_epochs=EPOCHS, lora_order="in-turn")
        rest = Tune(lora=RANK, tune_epochs=0.2 * EPOCHS)
        found += [
            Recipe(FineTune(), during, rest, name=f"{name}, adapters during the cut"),
            Recipe(FineTune(), Factorize(**cut), lora, name=f"{name}, adapters after it"),
            Recipe(FineTune(), Factorize(**cut), in_turn, name=f"{name}, after it and in turn"),
            Recipe(FineTune(), Factorize(**cut), Tune(tune_epochs=EPOCHS), name=f"{name}, all"),
        ]
    return found


def in_parts(cuts: list[str]) -> list[Recipe]:
    """All parameters, for a run of the fine-tuned model whose batches are cut into parts."""
    given, every = FineTune(finetune_epochs=0), Tune(tune_epochs=EPOCHS)
    return [
        Recipe(given, Factorize(**CUTS[name]), every, name=f"{name}, all, in {PARTS} parts")
        for name in cuts
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """As Markdown."""
    print("| cut, what is trained | kept numbers | before | final | validation | s | memory |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: -row["params"]):
        cells = [row["recipe"], f"{100 * row['params']:g} %"]
        scores = (row[key] for key in ("before_tuning", "final", "validation"))
        cells += ["" if score is None else f"{100 * score:.1f} %" for score in scores]
        cells.append("" if row["seconds"] is None else f"{row['seconds']:.0f}")
        # That of training: fine-tuning, which all have behind them, may need more.
        stages = [held for name, held in row["memory_of"].items() if name != "dense"]
        cells.append(f"{max(stages) / 2**30:.2f} GiB")
        print(f"| {' | '.join(cells)} |")


def rows_of(found: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Those of a comparison, with the peak memory of each stage."""
    places = [place_of(row["recipe"], row["params"], row["seed"]) for row in found["rows"]]
    held = [read_json(folder / "runs" / place / "memory.json") for place in places]
    return [row | {"memory_of": of} for row, of in zip(found["rows"], held, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--work", type=Path, default=Path("runs/compensation"))
    parser.add_argument("--params", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=list(CUTS))
    args = parser.parse_args()
    if not args.show:
        chosen: dict[str, Any] = {"task": "rotten_tomatoes", "preset": "quick", "keep": "all"}
        chosen["params"] = args.params
        whole, made = args.work / "whole", recipes(args.cuts)
        found = compare("minilm", out=whole, recipes=made, **chosen)
        # Its fine-tuned model is what the others start from: trained in parts it is another one.
        dense = whole / "runs" / place_of(made[0].name, args.params[0], 0) / "stages" / "dense"
        parts = args.work / "parts"
        rest = compare(dense, out=parts, recipes=in_parts(args.cuts), accumulate=PARTS, **chosen)
        facts = {name: found[name] for name in ("settings", "versions", "threads")}
        rows = rows_of(found, whole) + rows_of(rest, parts)
        write_json(RESULTS, facts | {"rows": rows} | provenance())
    show(read_json(RESULTS)["rows"])


if __name__ == "__main__":
    main()
