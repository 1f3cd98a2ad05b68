"""Fisher importance from gradients of batches against that of single examples, on a real model.

    python benchmarks/fisher.py runs/quick

Needs a run that has its dense stage. Both see the same examples at the same weights. Ranks are
compared by Spearman's correlation, of all entries of a matrix and of its row sums, which are all
that a row-shared factorization reads; sizes after scaling to mean 1, as a factorization does. The
weighted errors are relative to that of W = 0. Times are of all cores together, which neighbours on
the machine change least.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from provenance import provenance
from scipy.stats import spearmanr
from scores import by_score

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.core.machine import usable_cpus
from lpaf_jax.data import train_batches
from lpaf_jax.importance import fisher_scores
from lpaf_jax.linalg import LowRank, rank_for_ratio, svd, weighted_error, weighted_svd
from lpaf_jax.models import as_function, compressible, parameters
from lpaf_jax.models.functional import Batch, Params
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.tasks.inputs import load_inputs
from lpaf_jax.train import CLASSIFICATION

RESULTS = Path(__file__).parent / "results" / "fisher.json"
EXAMPLES = 1024
BATCHES = (32, 8)
RATIOS = (0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    args = parser.parse_args()
    record = read_json(args.run / "settings.json")
    settings = make_settings(record["model"], task=record["task"], out=args.run)
    data = load_inputs(settings).train
    model = load_model(args.run / "stages" / "dense")
    forward, params = as_function(model), parameters(model)
    weights = compressible(params)

    def measured(batch: int, **how: Any) -> tuple[Params, float]:
        """Importance, and CPU milliseconds an example without those of the compilation."""

        def timed(batches: list[Batch]) -> tuple[Params, float]:
            started = time.process_time()
            found = fisher_scores(forward, params, batches, CLASSIFICATION.loss, **how)
            return jax.block_until_ready(found), time.process_time() - started

        batches = list(train_batches(data, batch, seed=0, epoch=0)[: EXAMPLES // batch])
        one_of_each = list({b["input_ids"].shape: b for b in batches}.values())
        found, seconds = timed(batches)
        per_batch = (seconds - timed(one_of_each)[1]) / (len(batches) - len(one_of_each))
        return found, 1000 * per_batch / batch

    rows = []
    for batch in BATCHES:
        exact, slow = measured(batch)
        cheap, quick = measured(batch, per="batch")
        row: dict[str, Any] = {"batch": batch}
        row["cpu_ms_per_example"] = {"example": round(slow, 1), "batch": round(quick, 1)}
        row |= mean([agreement(exact[p], cheap[p]) for p in weights])
        for ratio in RATIOS:
            rank = rank_for_ratio([(w.shape[0], w.shape[1]) for w in weights.values()], ratio)
            found = [errors(w, exact[p], cheap[p], rank) for p, w in weights.items()]
            row[f"weighted_error_{ratio:g}"] = mean(found)
        rows.append(row)
        print(row, flush=True)
    write_json(
        RESULTS,
        {
            **provenance(),
            "machine": f"{usable_cpus()} CPU cores, jax {jax.__version__}",
            "model": f"{record['model']}, fine-tuned on {record['task']}",
            "examples": EXAMPLES,
            "means_over": f"{len(weights)} matrices",
            "rows": rows,
        },
    )


def agreement(exact: Array, cheap: Array) -> dict[str, float]:
    """How alike two importances of one matrix are, as a factorization sees them."""
    one, other = (np.asarray(i, np.float64) for i in (exact, cheap))
    one, other = one / one.mean(), other / other.mean()
    sums, others = one.mean(1), other.mean(1)
    return {
        "rank_correlation_entries": float(spearmanr(one.ravel(), other.ravel()).statistic),
        "rank_correlation_row_sums": float(spearmanr(sums, others).statistic),
        "relative_difference_row_sums": float(np.linalg.norm(others - sums) / np.linalg.norm(sums)),
        "size_of_batch_over_example": float(jnp.sum(cheap) / jnp.sum(exact)),
    }


def errors(w: Array, exact: Array, cheap: Array, rank: int) -> dict[str, float]:
    """Error under either importance of factors that were made with one or the other, or none."""
    ones = jnp.ones_like(w)
    weighting = {
        name: by_score(i, ones > 0, 0.0) for name, i in (("example", exact), ("batch", cheap))
    }
    factors = {name: weighted_svd(w, i, rank, "row") for name, i in weighting.items()}
    factors["none"] = svd(w, rank)
    zero = LowRank(jnp.zeros((w.shape[0], 1)), jnp.zeros((1, w.shape[1])))
    return {
        f"by_{made}_under_{under}": float(weighted_error(w, i, f) / weighted_error(w, i, zero))
        for under, i in weighting.items()
        for made, f in factors.items()
    }


def mean(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([f[name] for f in found])), 5) for name in found[0]}


if __name__ == "__main__":
    main()
