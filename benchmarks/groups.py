"""Which heads and channels go: by what adapters say, by gates, or at random; and the ends spared.

    python benchmarks/groups.py                        # eight cells of some minutes on two cores
    python benchmarks/groups.py --reuse runs/lora      # with the fine-tuned model of another run
    python benchmarks/groups.py --show                 # print what is there, run nothing

MiniLM and Rotten Tomatoes, preset `quick`: two epochs of adapters, during which groups go, and 0.6
of tuning. It goes on where it was if it is killed.
"""

import argparse
from pathlib import Path
from typing import Any

from provenance import provenance

from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs.comparison import compare
from lpaf_jax.stages import FineTune, PruneGroups, Tune

RESULTS = Path(__file__).parent / "results" / "groups.json"
WAYS: dict[str, dict[str, Any]] = {
    "adapters (LoRAPrune)": {},
    "adapters, ends spared": {"spare_ends": True},
    "gates": {"group_criterion": "gates"},
    "random": {"group_criterion": "random"},
}


def show(rows: list[dict[str, Any]]) -> None:
    """As Markdown."""
    print("| groups chosen by | kept | final | validation | divergence |")
    print("|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: -row["params"]):
        cells = [row["recipe"], f"{100 * row['params']:g} %"]
        cells += [f"{100 * row[key]:.1f} %" for key in ("final", "validation")]
        print(f"| {' | '.join(cells)} | {row['divergence']:.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--work", type=Path, default=Path("runs/groups"))
    parser.add_argument("--reuse", type=Path, nargs="+", default=[])
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    if not args.show:
        made = [Recipe(FineTune(), PruneGroups(**way), Tune(), name=n) for n, way in WAYS.items()]
        chosen: dict[str, Any] = {"preset": "quick", "reuse": tuple(args.reuse)}
        found = compare(
            "minilm",
            task="rotten_tomatoes",
            out=args.work,
            recipes=made,
            params=args.params,
            **chosen,
        )
        write_json(RESULTS, found | provenance())
    show(read_json(RESULTS)["rows"])


if __name__ == "__main__":
    main()
