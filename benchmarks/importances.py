"""What weighs the factorization best: accuracy before tuning by importance, ranks and pruning.

    python benchmarks/importances.py            # before tuning
    python benchmarks/importances.py --tuned    # before and after tuning, pruned first, at 25 %

Both are `lpaf compare` with recipes of their own, share one fine-tuned and one pruned model, and go
on where they were if they are killed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from provenance import provenance
from rich.console import Console

from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.recipes import Recipe
from lpaf_jax.report.compare import print_comparison
from lpaf_jax.runs.comparison import compare
from lpaf_jax.stages import Factorize, FineTune, Prune, Stage, Tune

Case = tuple[str, str, str]
RESULTS = Path(__file__).parent / "results"
# Importance, solver and rank rule: at 25 and 16 %, the first at 50 and 10 %, too.
CASES = (
    ("two-sided", "metric", "loss"),
    ("two-sided", "metric", "uniform"),
    ("activations", "metric", "loss"),
    ("activations", "metric", "uniform"),
    ("score", "row", "uniform"),
    ("fisher", "row", "uniform"),
    ("none", "plain", "uniform"),
)
# At 25 % alone.
AT_A_QUARTER = (
    ("two-sided", "metric", "share"),
    ("activations-diagonal", "metric", "uniform"),
    ("fisher", "elementwise", "uniform"),
)
# What only a pruned model has: Adam's second moments while it was pruned.
PRUNED = (("adam", "row", "uniform"), ("adam", "elementwise", "uniform"))
TUNED = (
    ("none", "plain", "uniform"),
    ("score", "row", "uniform"),
    ("adam", "row", "uniform"),
    ("fisher", "row", "uniform"),
    ("activations", "metric", "uniform"),
    ("two-sided", "metric", "loss"),
)


def recipe(case: Case, pruned: bool, tuned: bool) -> Recipe:
    importance, solver, ranks = case
    stages: list[Stage] = [FineTune(), Factorize(importance=importance, solver=solver, ranks=ranks)]
    if pruned:
        stages.insert(1, Prune(kept=0.5))
    if tuned:
        stages.append(Tune())
    name = f"{importance}, {solver}, {ranks}"
    name += ", pruned" if pruned else ""
    return Recipe(*stages, name=name)


def both(cases: Sequence[Case]) -> list[Recipe]:
    """Without pruning, and with it."""
    return [recipe(case, pruned, False) for pruned in (False, True) for case in cases]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("runs"))
    args = parser.parse_args()
    name = "importances_tuned" if args.tuned else "importances"
    shared = {
        "model": "minilm",
        "task": "rotten_tomatoes",
        "out": args.work / name,
        "seeds": args.seeds,
        "preset": "quick",
        "keep": "all",
    }
    if args.tuned:
        chosen = [recipe(case, True, True) for case in TUNED]
        found = compare(recipes=chosen, params=[0.25], **shared)
    else:
        chosen = both(CASES)
        compare(recipes=chosen, params=[0.25, 0.16], **shared)
        compare(recipes=both(CASES[:1]), params=[0.5, 0.1], **shared)
        chosen = both(AT_A_QUARTER) + [recipe(case, True, False) for case in PRUNED]
        found = compare(recipes=chosen, params=[0.25], **shared)
    write_json(
        RESULTS / f"{name}.json", read_json(args.work / name / "compare.json") | provenance()
    )
    print_comparison(found, Console(highlight=False, markup=False, emoji=False))


if __name__ == "__main__":
    main()
