"""Mixed-rank tuning of a decoder beside tuning of its factors alone, by the next token of a text.

    python benchmarks/mixed_decoder.py            # half an hour on two cores
    python benchmarks/mixed_decoder.py --show     # print what is there, run nothing

The text and the terms of `healing.py`: SmolLM2-135M, two-sided factors at 60 % with ranks by the
loss, 16 steps of 4 windows of 256 tokens. A mixed-rank step passes twice, so that it costs twice
as much.
"""

import argparse
from pathlib import Path
from typing import Any

from healing import BATCH, EPOCHS, FULL_LR, LENGTH, WINDOWS, reviews
from provenance import provenance

from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.recipes import Recipe
from lpaf_jax.report.compare_facts import groups
from lpaf_jax.runs.comparison import compare
from lpaf_jax.stages import Factorize, FineTune, MixedTune, Tune

RESULTS = Path(__file__).parent / "results" / "mixed_decoder.json"


def recipes() -> list[Recipe]:
    cut = Factorize(importance="two-sided", solver="metric", ranks="loss")
    ways = {
        "factors": Tune(tune_lr=FULL_LR, tune_epochs=EPOCHS),
        "mixed-rank": MixedTune(tune_lr=FULL_LR, tune_epochs=EPOCHS),
    }
    return [Recipe(FineTune(finetune_epochs=0), cut, tune, name=n) for n, tune in ways.items()]


def show(found: dict[str, Any]) -> None:
    """As Markdown."""
    print("| | before tuning | final | seconds |\n|---|---|---|---|")
    for of in (each for size in groups(found).values() for each in size):
        print(f"| {of.recipe} | {of.mean('before_tuning'):.1f} | {of.score:.1f} ", end="")
        print(f"| {of.mean('seconds'):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/mixed_decoder"))
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    if not args.show:
        found = compare(
            "smollm2",
            task=reviews(args.work),
            out=args.work / "comparison",
            recipes=recipes(),
            params=[0.6],
            limit=WINDOWS,
            length=LENGTH,
            batch=BATCH,
        )
        write_json(RESULTS, found | provenance())
    show(read_json(RESULTS))


if __name__ == "__main__":
    main()
