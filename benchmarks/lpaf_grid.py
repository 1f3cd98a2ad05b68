"""The ablation grid: {SVD_Ft, LPAF, LPAF without each step} x {50, 25, 16 %} x seeds.

    python benchmarks/lpaf_grid.py

is `lpaf compare` with these choices, and goes on where it was if it is killed. Every cell has the
same number of fine-tuning steps after the factorization, and the cells of one seed share one
fine-tuned and one pruned model. That favours LPAF, which has trained while it pruned and passes
twice in each step.
"""

import argparse
from pathlib import Path

from provenance import provenance
from rich.console import Console

from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.report.compare import print_comparison
from lpaf_jax.runs.comparison import compare

RECIPES = (
    "svd-ft",
    "lpaf",
    "lpaf-without-step-1",
    "lpaf-without-step-2",
    "lpaf-without-step-3",
)
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.25, 0.16])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--work", type=Path, default=Path("runs/grid"))
    args = parser.parse_args()
    found = compare(
        "minilm",
        task="rotten_tomatoes",
        out=args.work,
        recipes=args.recipes,
        params=args.ratios,
        seeds=args.seeds,
        keep="all",  # what another call adds is made of the same stages
    )
    kept = read_json(args.work / "compare.json") | provenance()
    write_json(RESULTS / "lpaf_grid.json", kept)
    print_comparison(found, Console(highlight=False, markup=False, emoji=False))


if __name__ == "__main__":
    main()
