"""What step 1 keeps: accuracy and rank after pruning with each criterion, from one dense model.

    python benchmarks/criteria.py

Every case prunes the same fine-tuned model for the same number of steps. Accuracy is of the
validation split; ranks are means over the compressible matrices. Cases already in the JSON are not
run again.
"""

import argparse
import gc
import shutil
from pathlib import Path
from typing import Any

import jax
from provenance import provenance

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.core.progress import Progress
from lpaf_jax.factorization.analysis import analyse_pruning
from lpaf_jax.models import compressible, parameters
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.run import Run
from lpaf_jax.runs.settings import as_json, make_settings
from lpaf_jax.stages.prune import pruning_arrays
from lpaf_jax.stages.trainer import score_of
from lpaf_jax.tasks.inputs import Inputs, fingerprint, load_inputs

# Criterion, share of the weights kept, decay of the score.
CASES: list[tuple[str, float, float | None]] = [
    ("sensitivity", 0.3, None),
    ("magnitude", 0.3, None),
    ("first-order", 0.3, None),
    ("first-order", 0.3, 0.99),
    ("first-order", 0.88, None),
]
RESULTS = Path(__file__).parent / "results" / "criteria.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/grid"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base = make_settings(
        "minilm", task="rotten_tomatoes", out=args.work / f"base{args.seed}", seed=args.seed
    )
    inputs = load_inputs(base)
    job, progress = Run(base), Progress(base.out, quiet=False)
    with job.opened(fingerprint(inputs)):
        pipeline.do_step(job, inputs, progress, "dense")
    dense = load_model(job.stage("dense"))
    table = {
        **provenance(),
        "settings": as_json(base) | {"out": "runs"},
        "dense_validation_accuracy": score_of(dense, inputs.validation, base.batch)(
            parameters(dense)
        ),
    }
    rows = read_json(RESULTS)["rows"] if RESULTS.is_file() else []
    for criterion, kept, decay in CASES:
        case: dict[str, Any] = {"criterion": criterion, "kept": kept, "score_decay": decay}
        case["seed"] = args.seed
        if any(case.items() <= row.items() for row in rows):
            continue
        settings = make_settings(
            "minilm",
            task="rotten_tomatoes",
            out=args.work / f"{criterion}-{kept}-{decay}-{args.seed}",
            reuse=base.out,
            **case,
        )
        rows.append(case | run_case(Run(settings), inputs))
        write_json(RESULTS, table | {"rows": rows})
        jax.clear_caches()
        gc.collect()
    for row in rows:
        print(row)


def run_case(job: Run, inputs: Inputs) -> dict[str, Any]:
    progress = Progress(job.folder, quiet=False)
    with job.opened(fingerprint(inputs)):
        pipeline.do_step(job, inputs, progress, "dense")
        pipeline.do_step(job, inputs, progress, "pruned")
    dense, pruned = (load_model(job.stage(name)) for name in ("dense", "pruned"))
    accuracy = score_of(pruned, inputs.validation, job.settings.batch)(parameters(pruned))
    kernels = [compressible(parameters(model)) for model in (dense, pruned)]
    figures = analyse_pruning(*kernels, pruning_arrays(job.stage("pruned")).masks)["mean"]
    shutil.rmtree(job.folder / "stages")
    return {
        "validation_accuracy": accuracy,
        "dense": figures["dense"],
        "pruned": figures["pruned"],
        # The largest weights of the dense model at the same sparsity, not trained since.
        "largest_of_dense": figures["magnitude"],
    }


if __name__ == "__main__":
    main()
