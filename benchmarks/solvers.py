"""Accuracy right after the factorization, before any tuning, by solver, importance and floor.

    python benchmarks/solvers.py runs/grid/base0

Needs a run that has finished its pruning stage (any `lpaf compress`, or the grid). Validation
accuracy is what chose the defaults, so validation is what is printed.
"""

import argparse
import time
from pathlib import Path

import jax.numpy as jnp
from provenance import provenance

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.factorization import factorize, to_factors
from lpaf_jax.importance import Subject
from lpaf_jax.models import compressible, parameters
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.stages.prune import pruning_arrays
from lpaf_jax.stages.trainer import score_of
from lpaf_jax.tasks.inputs import load_inputs

CHOICES = [
    ("plain", "none", 0.0),
    *[(s, "score", f) for s in ("row", "elementwise") for f in (0.01, 0.1, 1.0)],
    *[(s, "mask", 0.1) for s in ("row", "elementwise")],
    *[(s, "magnitude", 0.1) for s in ("row", "elementwise")],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25])
    args = parser.parse_args()
    record = read_json(args.run / "settings.json")
    inputs = load_inputs(make_settings(record["model"], task=record["task"], out=args.run))
    pruned = args.run / "stages" / "pruned"
    left = pruning_arrays(pruned)
    model = load_model(pruned)
    weights = compressible(parameters(model))
    subject = Subject(
        model, weights, *left, lambda count=None: iter(()), inputs.kind.objective.loss
    )
    rows = []
    for ratio in args.ratios:
        for solver, kind, floor in CHOICES:
            started = time.monotonic()
            found = factorize(subject, solver=solver, importance=kind, params=ratio, floor=floor)
            factors = {path: solution.factors for path, solution in found.items()}
            error = sum(
                float(jnp.sum(jnp.square(weights[p] - f.dense()))) for p, f in factors.items()
            ) / sum(float(jnp.sum(jnp.square(w))) for w in weights.values())
            seconds = time.monotonic() - started
            model = load_model(pruned)
            to_factors(model, found)
            accuracy = score_of(model, inputs.validation, 32)(parameters(model))
            rows.append(
                {"ratio": ratio, "solver": solver, "importance": kind, "floor": floor}
                | {"validation_accuracy": accuracy, "relative_error": error}
                | {"seconds": round(seconds, 2)}
            )
            print(
                f"{ratio:>5.0%}  {solver:<12}{kind:<10}floor {floor:<5g} validation {accuracy:.1%}"
                f"  unweighted error {error:.3f}  {seconds:.1f} s",
                flush=True,
            )
    write_json(
        Path(__file__).parent / "results" / "solvers.json",
        {
            **provenance(),
            "settings": record | {"out": "runs"},
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
