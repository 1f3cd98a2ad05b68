"""The ablation grid: {SVD_Ft, LPAF, LPAF without each step} x {50, 25, 16 %} x seeds.

    python benchmarks/lpaf_grid.py --seeds 0 1

Every cell has the same number of fine-tuning steps after the factorization, and the cells of one
seed share one fine-tuned and one pruned model. That favours LPAF, which has trained while it
pruned and passes twice in each step; `svd-ft-longer` is SVD_Ft with as many passes over the data
as LPAF has in both. Test accuracy is taken right after the factorization (before) and after
fine-tuning (after). Cells already in the JSON are not run again, so a killed grid goes on where it
was.
"""

import argparse
import dataclasses
import datetime
import gc
import shutil
import time
from pathlib import Path
from typing import Any

import jax
from provenance import commit

from lpaf_jax import pipeline
from lpaf_jax.data import classification_metrics
from lpaf_jax.files import read_json, write_json
from lpaf_jax.inputs import Inputs, fingerprint, load_inputs
from lpaf_jax.machine import usable_cpus
from lpaf_jax.models import as_function, load_model, parameters
from lpaf_jax.progress import Progress
from lpaf_jax.run import Run
from lpaf_jax.settings import Settings, Step, as_json, make_settings
from lpaf_jax.train import predict

RECIPES: dict[str, tuple[Step, ...]] = {
    "svd-ft": ("prune", "weighting", "mixing"),
    "lpaf": (),
    "lpaf-without-step-1": ("prune",),
    "lpaf-without-step-2": ("weighting",),
    "lpaf-without-step-3": ("mixing",),
    "svd-ft-longer": ("prune", "weighting", "mixing"),
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5, 0.16])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--work", type=Path, default=Path("runs/grid"))
    args = parser.parse_args()
    for seed in args.seeds:
        run_seed(seed, args)


def run_seed(seed: int, args: argparse.Namespace) -> None:
    path = RESULTS / f"lpaf_grid_seed{seed}.json"
    table = read_json(path) if path.is_file() else {"cells": []}
    base = make_settings("minilm", task="rotten_tomatoes", out=args.work / f"base{seed}", seed=seed)
    inputs = load_inputs(base)
    if "settings" in table:
        differing = [k for k, v in as_json(base).items() if table["settings"].get(k) != v]
        if set(differing) - {"out"}:
            raise SystemExit(f"{path} holds cells of other {', '.join(differing)}: move it away")
    job = Run(base)
    progress = Progress(job.folder, quiet=False)
    with job.opened(fingerprint(inputs)):
        pipeline.fine_tune(job, inputs, progress)
        pipeline.prune(job, inputs, progress)
    shared = {name: accuracy(job, inputs, name) for name in ("dense", "pruned")}
    table |= {
        "command": f"python benchmarks/lpaf_grid.py --seeds {seed}",
        "settings": as_json(base) | {"out": "runs"},
        "seconds": job.seconds(),
        "threads": usable_cpus(),
        **shared,
    }
    write_json(path, table)
    for ratio in args.ratios:
        for recipe in args.recipes:
            done = {(cell["ratio"], cell["recipe"]) for cell in table["cells"]}
            if (ratio, recipe) not in done:
                cell = run_cell(ratio, recipe, base, inputs)
                table["cells"].append(cell | {"commit": commit()})
                write_json(path, table)


def run_cell(ratio: float, recipe: str, base: Settings, inputs: Inputs) -> dict[str, Any]:
    started = time.monotonic()
    settings = dataclasses.replace(
        base,
        out=base.out.with_name(f"{recipe}-{ratio}-{base.seed}"),
        params=ratio,
        without=RECIPES[recipe],
        reuse=base.out,
    )
    if recipe == "svd-ft-longer":
        longer = base.prune_epochs + 2 * base.tune_epochs
        settings = dataclasses.replace(settings, tune_epochs=longer)
    job = Run(settings)
    progress = Progress(job.folder, quiet=False)
    rank = pipeline.choose_rank(settings, inputs)
    progress.say(f"--- {recipe} at {ratio:.0%}, rank {rank}")
    with job.opened(fingerprint(inputs)):
        pipeline.fine_tune(job, inputs, progress)
        if "prune" not in settings.without:
            pipeline.prune(job, inputs, progress)
        pipeline.factorize(job, inputs, progress, rank)
        pipeline.tune(job, inputs, progress)
    before, after = (accuracy(job, inputs, name) for name in ("factorized", "final"))
    progress.say(
        f"--- {recipe} at {ratio:.0%}: {before['accuracy']:.3f} -> {after['accuracy']:.3f}"
    )
    cell = {
        "ratio": ratio,
        "recipe": recipe,
        "rank": rank,
        "before": before,
        "after": after,
        "seconds": round(time.monotonic() - started, 1),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    shutil.rmtree(job.folder / "stages")
    # Thirty cells in one process: their compiled steps would fill the memory.
    jax.clear_caches()
    gc.collect()
    return cell


def accuracy(job: Run, inputs: Inputs, stage: str) -> dict[str, Any]:
    """Test accuracy of the model after a stage, with counts and interval."""
    model = load_model(job.stage(stage))
    logits = predict(jax.jit(as_function(model)), parameters(model), inputs.test, 32)
    found = classification_metrics(inputs.test.labels, logits.argmax(-1), inputs.task.label_names)
    return {name: found[name] for name in ("accuracy", "correct", "n", "interval95")}


if __name__ == "__main__":
    main()
