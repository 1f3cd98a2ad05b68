"""Embeddings and matrices of a decoder in other forms, at equal bytes, before and after healing.

    python benchmarks/embeddings_decoder.py              # eight cells of some minutes on two cores
    python benchmarks/embeddings_decoder.py --cells 1 2  # the first two
    python benchmarks/embeddings_decoder.py --show       # print what is there, run nothing

SmolLM2-135M, 64 pieces of 256 tokens of IMDb to calibrate with and, for one pass, to be tuned on by
the next token, 16 steps of 4; judged by 64 pieces of other reviews. Five rows keep 90 % of the
model and three 70 %: a fifth of it is the table of embeddings, which the head shares. One row is
tuned as KnGPT2 is, by attention and hidden states as well. It goes on where it was if it is killed.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from provenance import provenance

from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs.comparison import compare
from lpaf_jax.stages import Factorize, FineTune, Tune

RESULTS = Path(__file__).parent / "results" / "embeddings_decoder.json"
TUNE = Tune(tune_lr=1e-4)


def table(name: str, size: float, form: Any = "low-rank") -> Recipe:
    """Half of the table is left, or as near to it as the form comes."""
    cut = Factorize(
        importance="none", solver="plain", ranks="share", embeddings=size, embeddings_as=form
    )
    return Recipe(FineTune(), cut, TUNE, name=name)


def drone(name: str) -> Recipe:
    cut = Factorize(importance="activations", solver="metric", ranks="share")
    return Recipe(FineTune(), cut, TUNE, name=name)


def kngpt2(name: str, tune: Tune = TUNE) -> Recipe:
    """The recipe's own cut."""
    cut = Factorize(
        importance="none",
        solver="kronecker-pairs",
        ranks="alternate",
        embeddings=0.5,
        embeddings_as="kronecker",
    )
    return Recipe(FineTune(), cut, tune, name=name)


LAYERS = dataclasses.replace(TUNE, distil_hidden=1.0, distil_attention=1.0)
# A recipe, and the share of the compressible weights that it is to keep.
CELLS = [
    (table("albert: table in two factors", 284), 1.0),
    (table("tensorgpt: table in trains", 0.5, "trains"), 1.0),
    (table("kngpt2: table as a Kronecker product", 0.5, "kronecker"), 1.0),
    (drone("drone: matrices alone"), 0.867),
    (kngpt2("kngpt2: table and every second block"), 0.75),
    (kngpt2("the same, tuned layer by layer", LAYERS), 0.75),
    (drone("drone: matrices alone"), 0.617),
    (table("table as a sum of Kronecker products", 0.5, "kronecker-sums"), 1.0),
]


def show(rows: list[dict[str, Any]]) -> None:
    """Largest first, as Markdown."""
    print("| | matrices | whole model | file | before tuning | tuned | seconds |")
    print("|---|---|---|---|---|---|---|")
    dense = rows[0]
    print(f"| dense | 100 % | 100 % | {dense['bytes_dense'] / 1e6:.1f} MB | {dense['dense']:.1f} |")
    for row in sorted(rows, key=lambda row: -row["total_params_ratio"]):
        shares = (row[f"{part}_params_ratio"] for part in ("encoder", "total"))
        cells = [row["recipe"], *(f"{100 * share:.1f} %" for share in shares)]
        cells.append(f"{row['bytes'] / 1e6:.1f} MB")
        cells += [f"{row[key]:.1f}" for key in ("before_tuning", "final")]
        print(f"| {' | '.join(cells)} | {row['seconds']:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    every = range(1, len(CELLS) + 1)
    parser.add_argument("--cells", type=int, nargs="+", choices=every, default=every, metavar="N")
    parser.add_argument("--work", type=Path, default=Path("runs/embeddings-decoder"))
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    if not args.show:
        texts = {"calibration": Path("imdb"), "held_out": Path("imdb")}
        # Without a task a recipe tunes only where it is told to.
        chosen: dict[str, Any] = {**texts, "samples": 64, "length": 256, "batch": 4}
        chosen |= {"tune_epochs": 1.0}
        for recipe, params in (CELLS[number - 1] for number in args.cells):
            found = compare("smollm2", recipes=[recipe], params=[params], out=args.work, **chosen)
            write_json(RESULTS, found | provenance())
    show(read_json(RESULTS)["rows"])


if __name__ == "__main__":
    main()
