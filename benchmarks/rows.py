"""Importances of rows without gradients of matrices: how near to Fisher's, and what they cost.

    python benchmarks/rows.py RUN        # the fine-tuned model of a run of minilm, with its task
    python benchmarks/rows.py smollm2    # the packaged decoder, by reviews of IMDb
    python benchmarks/rows.py --show     # print what is there, run nothing

Each importance is a process of its own. It is held against the row sums of the whole diagonal,
from one dense gradient an example, by Spearman's correlation over the rows of a matrix, in the mean
of the matrices; then all are cut to uniform ranks, in a decoder to equal shares, in the metric of
those rows, and the model is judged as it is. Memory is the peak of the process above that of one
that measures nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from provenance import provenance
from scipy.stats import spearmanr

from lpaf_jax.checkpoints import load_model, resolve_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.core.machine import peak_memory
from lpaf_jax.data import (
    load_task,
    load_tokenizer,
    packed,
    sample_blocks,
    text_tokens,
    text_windows,
    train_batches,
)
from lpaf_jax.factorization import to_factors
from lpaf_jax.importance import IMPORTANCES, Subject
from lpaf_jax.importance.base import of_model
from lpaf_jax.linalg import metric_svd
from lpaf_jax.models import compressible, parameters
from lpaf_jax.ranks import choose_ranks
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.solvers import Solution
from lpaf_jax.stages.trainer import score_of
from lpaf_jax.tasks.inputs import load_inputs
from lpaf_jax.tasks.kinds import EvalSet, judged_windows
from lpaf_jax.train import LANGUAGE

RESULTS = Path(__file__).parent / "results" / "rows.json"
# "none" is what a model costs that is only loaded, cut and judged; "fisher" is the oracle.
NAMES = ("none", "fisher", "fisher-rows", "lora-sketch", "lora", "lora-taylor")
BATCHES = 40
PIECES, LENGTH = 32, 256


class Case(NamedTuple):
    """A model with its data."""

    subject: Subject
    judged: dict[str, EvalSet]
    shares: tuple[float, ...]
    # Of ranks: one for all would end at the narrowest matrix, 192 of SmolLM2's 576 to 1536.
    rule: str
    reload: Any


def of_run(run: Path) -> Case:
    record = read_json(run / "settings.json")
    inputs = load_inputs(make_settings(record["model"], task=record["task"], out=run))
    place = run / "stages" / "dense"
    model = load_model(place)

    def batches(count: int | None = None) -> Any:
        return islice(train_batches(inputs.train, 32, seed=0, epoch=0), count or BATCHES)

    loss = inputs.kind.objective.loss
    subject = Subject(model, compressible(parameters(model)), {}, {}, {}, batches, loss)
    judged = {"validation": inputs.validation, "test": inputs.test}
    return Case(subject, judged, (0.5, 0.25), "uniform", lambda: load_model(place))


def of_decoder() -> Case:
    folder = resolve_model("smollm2")
    tokenizer, reviews = load_tokenizer(folder), load_task("imdb")
    stream = text_tokens(tokenizer, reviews.train.texts)
    pieces = sample_blocks(stream, LENGTH, PIECES, 0)
    windows = text_windows(text_tokens(tokenizer, reviews.test.texts), LENGTH)
    whole = (window.ids for window in windows if len(window.ids) == LENGTH)
    judged = judged_windows(packed(list(islice(whole, 40)), tokenizer.pad_id))
    model = load_model(folder, head="lm")

    def batches(count: int | None = None) -> Any:
        for ids in pieces[:count]:
            row = ids[None]
            ones = np.ones_like(row)
            yield {"input_ids": row, "attention_mask": ones, "weight": np.ones(1, np.float32)}

    weights = compressible(parameters(model))
    subject = Subject(model, weights, {}, {}, {}, batches, LANGUAGE.loss)
    return Case(
        subject, {"imdb": judged}, (0.8, 0.6), "share", lambda: load_model(folder, head="lm")
    )


def measure(name: str, model: str, out: Path) -> dict[str, Any]:
    """One importance, in this process; its rows go into the file `out`."""
    case = of_decoder() if model == "smollm2" else of_run(Path(model))
    begun = time.perf_counter()
    found = of_model(IMPORTANCES[name], case.subject)
    rows = {
        path: np.asarray(w.entries.sum(1) if w.left is None else w.left)
        for path, w in found.items()
        if w.entries is not None or w.left is not None
    }
    seconds, peak = time.perf_counter() - begun, peak_memory()
    np.savez(out, **rows)
    scores: dict[str, Any] = {}
    weights = case.subject.weights
    shapes = {path: (x.shape[0], x.shape[1]) for path, x in weights.items()}
    for share in case.shares:
        ranks = choose_ranks(case.rule, shapes, params=share)
        cut = {
            path: Solution(metric_svd(weights[path], rank, left=_left(rows, path)))
            for path, rank in ranks.items()
            if rank is not None
        }
        small = case.reload()
        to_factors(small, cut)
        scores[f"{share:g}"] = {
            text: score_of(small, judged, 8)(parameters(small))
            for text, judged in case.judged.items()
        }
    return {"importance": name, "seconds": round(seconds, 1), "peak": peak, "scores": scores}


def _left(rows: dict[str, np.ndarray], path: str) -> Any:
    if path not in rows:
        return None
    # In the mean of 1, as solvers are given importances.
    return jnp.asarray(rows[path] / max(rows[path].mean(), np.finfo(np.float32).tiny))


def correlations(work: Path, rows: list[dict[str, Any]]) -> None:
    exact = np.load(work / "fisher.npz")
    for row in rows:
        if row["importance"] in ("none", "fisher"):
            continue
        other = np.load(work / f"{row['importance']}.npz")
        each = [spearmanr(exact[path], other[path]).statistic for path in exact.files]
        row["spearman"] = {"mean": float(np.mean(each)), "least": float(np.min(each))}


def show(found: dict[str, Any]) -> None:
    """As Markdown."""
    for model, rows in found.items():
        base = next(row["peak"] for row in rows if row["importance"] == "none")
        heads = [f"{100 * float(p):g} %, {t}" for p, ts in rows[0]["scores"].items() for t in ts]
        print(f"\n{model}\n")
        print(f"| importance | Spearman, mean (least) | seconds | memory | {' | '.join(heads)} |")
        print("|" + "---|" * (4 + len(heads)))
        for row in rows:
            rank = row.get("spearman")
            cells = [row["importance"]]
            cells.append("" if rank is None else f"{rank['mean']:.3f} ({rank['least']:.2f})")
            none = row["importance"] == "none"
            cells.append("" if none else f"{row['seconds']:.0f}")
            cells.append("" if none else f"{(row['peak'] - base) / 2**20:,.0f} MiB")
            values = [x for texts in row["scores"].values() for x in texts.values()]
            cells += [f"{100 * x:.1f} %" if x <= 1 else f"{x:,.1f}" for x in values]
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder of a run of minilm, or smollm2")
    parser.add_argument("--work", type=Path, default=Path("runs/rows"))
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    held: dict[str, Any] = read_json(RESULTS) if RESULTS.is_file() else {}
    if args.show:
        show(held)
        return
    if args.model is None:
        parser.error("name a run, or smollm2")
    if args.one is not None:
        print(json.dumps(measure(args.one, args.model, args.work / f"{args.one}.npz")))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in NAMES:
        words = [args.model, "--one", name, "--work", str(args.work)]
        command = [sys.executable, __file__, *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        rows.append(json.loads(done.stdout) | provenance())
        print(rows[-1], file=sys.stderr, flush=True)
    correlations(args.work, rows)
    key = args.model if args.model == "smollm2" else "minilm"
    write_json(RESULTS, held | {key: rows})
    show({key: rows})


if __name__ == "__main__":
    main()
