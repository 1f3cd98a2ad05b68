"""SmolLM2-135M cut without training: methods, rank rules and tuned blocks, on two kinds of text.

    python benchmarks/decoders.py                          # all rows, some hours on two cores
    python benchmarks/decoders.py --params 0.8 --seeds 0   # some of them
    python benchmarks/decoders.py --show                   # print what is there, run nothing

Every row is cut by the same reviews of IMDb and judged by others, and by Python's own reference
manual, which no row has seen. Each row is a process of its own, and is kept with its commit as it
is finished: those that `benchmarks/results/decoders.json` holds are not run again. What the rows by
two sides have in common, gradients, spectra and what was measured of each cut, is taken once a
seed, in the first of them, and is in its seconds alone.

Rows that are tuned pass `--epochs` times more over the pieces that they were calibrated with, the
whole model by AdamW, `--batch` pieces a step: the dense one by the next token, the others by what
the dense one answers, too (`--distil`). What they are held against is the dense model tuned for as
many steps: to learn what reviews are like is no healing. Other settings of tuning make other rows;
`--keep` leaves what was cut for them, whose seconds are then of the tuning alone.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from provenance import provenance

from lpaf_jax.checkpoints import DecoderOnDisk, load_model, resolve_model
from lpaf_jax.cli.allocator import SETTINGS, wanted
from lpaf_jax.core.files import link, read_json, write_json
from lpaf_jax.core.machine import peak_memory
from lpaf_jax.core.progress import Progress
from lpaf_jax.data import (
    load_task,
    load_tokenizer,
    packed,
    sample_blocks,
    text_tokens,
    text_windows,
)
from lpaf_jax.factorization.blocks import Outcome, compress_decoder
from lpaf_jax.factorization.dense import Plan
from lpaf_jax.factorization.store import Store
from lpaf_jax.models.functional import parameters
from lpaf_jax.runs.cells import place_of
from lpaf_jax.runs.run import Run
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.runs.text_decoder import Decoder
from lpaf_jax.runs.text_models import Result
from lpaf_jax.stages.trainer import score_of
from lpaf_jax.tasks.kinds import judged_windows

RESULTS = Path(__file__).parent / "results" / "decoders.json"
LENGTH = 512


class Row(NamedTuple):
    """A method, by what a `Plan` calls its parts."""

    importance: str
    solver: str
    ranks: str
    block_epochs: int = 0
    channels: str = "none"
    channels_by: str = "loss"
    tuned: bool = False
    pruned_to: float = 1.0


TUNING = ("epochs", "batch", "learning_rate", "distil")
TWO_SIDED = ("two-sided", "metric")
# The first one takes what the others of two sides share, with channels and without.
ROWS = {
    # With all of the numbers: what tuning alone does.
    "dense": Row("activations", "metric", "uniform", tuned=True),
    "channels, measured": Row(*TWO_SIDED, "measured", channels="all"),
    "channels, measured, blocks tuned": Row(*TWO_SIDED, "measured", 4, channels="all"),
    "channels, loss": Row(*TWO_SIDED, "loss", channels="all", tuned=True),
    "channels, share": Row(*TWO_SIDED, "share", channels="all"),
    "kfac-svd, measured": Row(*TWO_SIDED, "measured"),
    "kfac-svd, measured, blocks tuned": Row(*TWO_SIDED, "measured", 4),
    "kfac-svd, loss": Row(*TWO_SIDED, "loss", tuned=True),
    "kfac-svd, share": Row(*TWO_SIDED, "share"),
    "sparsegpt-svd, loss": Row(*TWO_SIDED, "loss", pruned_to=0.5),
    "aa-svd, share": Row("shifted", "shifted", "share"),
    "drone, share (SVD-LLM)": Row("activations", "metric", "share", tuned=True),
    "lorap": Row(
        *("activations-diagonal", "metric", "values-first"),
        channels="feed-forward",
        channels_by="norms",
    ),
    "svd, share": Row("none", "plain", "share"),
}


def texts(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Pieces to calibrate with, and to judge by."""
    tokenizer = load_tokenizer(resolve_model("smollm2"))
    reviews = load_task("imdb")
    stream = text_tokens(tokenizer, reviews.train.texts)
    found = {"calibration": sample_blocks(stream, LENGTH, args.samples, args.seed)}
    for name, of in (("imdb", reviews.test.texts), ("manual", manual())):
        windows = text_windows(text_tokens(tokenizer, of), LENGTH)
        whole = (window.ids for window in windows if len(window.ids) == LENGTH)
        found[name] = np.stack(list(islice(whole, args.held_out)))
    return found


def manual() -> list[str]:
    """The reference manual that Python carries for `help()`."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def cut(args: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    row, given = ROWS[args.row], texts(args)
    shared = args.work / f"shared-{args.seed}-{args.samples}-{row.channels}"
    # Kept until the figures are out: a row that was killed goes on.
    work = args.work / place_of(f"cut-{args.row}-{args.samples}", args.share, args.seed)
    if shared.is_dir() and row[:2] == TWO_SIDED and not work.is_dir():
        shutil.copytree(shared, work, copy_function=link)
    plan = Plan(
        *row[:3],
        # A rank beyond all of them leaves every matrix as it is; the share would round one down.
        params=None if args.share == 1 else args.share,
        rank=10**6 if args.share == 1 else None,
        channels=row.channels,
        channels_by=row.channels_by,
        block_epochs=row.block_epochs,
        pruned_to=row.pruned_to,
        seed=args.seed,
    )
    judged = {name: given[name] for name in ("imdb", "manual")}
    begun = time.perf_counter()
    outcome = compress_decoder(
        DecoderOnDisk(resolve_model("smollm2")),
        given["calibration"],
        plan,
        Store(work),
        held_out=judged,
        say=lambda text: print(f"  {text}", file=sys.stderr, flush=True),
    )
    seconds = time.perf_counter() - begun
    peak = peak_memory()
    tuned = tune(args, work, given, outcome) if tuning_of(args, args.row) else {}
    # What rows by the loss leave lacks what was measured, and would be taken for all of it.
    if row.ranks == "measured" and not shared.is_dir():
        own = shutil.ignore_patterns("block-*", "cuts-*", "ranks.json")
        shutil.copytree(work, shared, ignore=own, copy_function=link)
    if not args.keep:
        shutil.rmtree(work)
    sizes = [(math.prod(cut.shape), cut.numbers) for cut in outcome.cuts]
    dense, kept = map(sum, zip(*sizes, strict=True))
    return {
        "row": args.row,
        "params": args.share,
        "seed": args.seed,
        "samples": args.samples,
        "perplexity": outcome.perplexity,
        **tuned,
        "kept": kept / dense,
        "matrices_dense": sum(cut.record is None for cut in outcome.cuts),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak,
        "tokens": {name: int(x.size) for name, x in given.items()},
    }


def tune(
    args: argparse.Namespace, work: Path, given: dict[str, np.ndarray], outcome: Outcome
) -> dict[str, Any]:
    """Perplexity after tuning, how it was done, and its seconds."""
    begun, out = time.perf_counter(), args.work / "tuned"
    tuning = tuning_of(args, args.row) or {}
    shutil.rmtree(out, ignore_errors=True)
    settings = make_settings(
        "smollm2",
        out=out,
        calibration="imdb",
        held_out="imdb",
        recipe="kfac-svd",
        seed=args.seed,
        tune_epochs=tuning["epochs"],
        tune_lr=tuning["learning_rate"],
        batch=tuning["batch"],
        distil=tuning["distil"],
    )
    decoder, job = Decoder(resolve_model("smollm2")), Run(settings)
    progress = Progress(job.folder, quiet=True)
    with job.opened(args.row):
        cut, final = (name for name, _ in settings.steps_of_texts)
        decoder.assemble(Result(outcome.cuts, {}), work, job.stage(cut))
        decoder.tune(settings, given["calibration"], given["imdb"], job, progress)
        found = {name: perplexity_of(job.stage(final), given[name]) for name in ("imdb", "manual")}
    shutil.rmtree(out)
    seconds = round(time.perf_counter() - begun, 1)
    return {"tuned": found, "tuning": tuning, "tuning_seconds": seconds}


def tuning_of(args: argparse.Namespace, name: str) -> dict[str, Any] | None:
    """How a row is tuned, if it is: the dense model has no other's answers to follow."""
    if not ROWS[name].tuned or not args.epochs:
        return None
    return {option: getattr(args, option) for option in TUNING} | (
        {"distil": 0.0} if name == "dense" else {}
    )


def perplexity_of(folder: Path, pieces: np.ndarray) -> float:
    model = load_model(folder, head="lm")
    judged = judged_windows(packed(list(pieces), pad_id=0))
    return score_of(model, judged, batch_size=1)(parameters(model))


def allocator() -> dict[str, str]:
    """What `lpaf compress` sets for itself as it begins."""
    return SETTINGS if wanted(os.environ) else {}


def show(rows: list[dict[str, Any]]) -> None:
    """The mean over seeds, as Markdown."""
    print("Perplexity: dense → cut → tuned.\n")
    print("| | kept | tuned | IMDb | manual | dense matrices | seconds | peak memory | seeds |")
    print("|---|---|---|---|---|---|---|---|---|")
    alike: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (-row["params"], list(ROWS).index(row["row"]))):
        kind = {name: row.get(name) for name in ("row", "params", "tuning")}
        alike.setdefault(json.dumps(kind), []).append(row)
    for of in alike.values():
        cells = [of[0]["row"], f"{100 * of[0]['params']:g} %", how_tuned(of[0])]
        for text in ("imdb", "manual"):
            before, after = (
                np.mean([row["perplexity"][text][model] for row in of])
                for model in ("dense", "compressed")
            )
            cells.append(f"{before:.1f} → {after:.1f}")
            if "tuned" in of[0]:
                cells[-1] += f" → {np.mean([row['tuned'][text] for row in of]):.1f}"
        cells.append(f"{np.mean([row['matrices_dense'] for row in of]):.0f} of 210")
        cells.append(f"{np.mean([row['seconds'] for row in of]):.0f}")
        cells.append(f"{max(row['peak_memory_bytes'] for row in of) / 2**30:.2f} GiB")
        print(f"| {' | '.join(cells)} | {len(of)} |")


def how_tuned(row: dict[str, Any]) -> str:
    """`64 steps of 2, lr 0.0001, distil 1`; nothing where it is not."""
    if "tuning" not in row:
        return ""
    found = row["tuning"]
    steps = round(found["epochs"] * math.ceil(row["samples"] / found["batch"]))
    rate, distil = found["learning_rate"], found["distil"]
    return f"{steps} steps of {found['batch']}, lr {rate:g}, distil {distil:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--params", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--samples", type=int, default=128, help="pieces to calibrate with")
    parser.add_argument("--held-out", type=int, default=40, help="pieces of each text to judge by")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes of tuning, or 0")
    parser.add_argument("--batch", type=int, default=2, help="pieces in a step of tuning")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of AdamW in tuning")
    parser.add_argument("--distil", type=float, default=1.0, help="weight of the dense answers")
    parser.add_argument("--keep", action="store_true", help="keep what was cut, to tune it again")
    parser.add_argument("--work", type=Path, default=Path("runs/decoders"))
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row is not None:
        print(json.dumps(cut(args)))
        return
    if args.show:
        show(read_json(RESULTS)["rows"])
        return
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = read_json(RESULTS)["rows"] if RESULTS.is_file() else []
    known = ("row", "params", "seed", "samples", "tuning")
    done = [tuple(row.get(name) for name in known) for row in rows]
    for seed in args.seeds:
        for share in [1.0, *args.params]:
            for name in args.rows:
                tuning = tuning_of(args, name)
                if (name, share, seed, args.samples, tuning) in done or (name == "dense") != (
                    share == 1
                ):
                    continue
                print(f"{name}, {100 * share:g} %, seed {seed}", file=sys.stderr, flush=True)
                words = ["--row", name, "--share", str(share), "--seed", str(seed)]
                words += ["--keep"] if args.keep else []
                for option in ("samples", "held_out", "work", *TUNING):
                    words += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
                # Threads of OpenBLAS would fight those of XLA, and memory that goes back to the
                # system costs the command nothing, either.
                quiet = {**os.environ, "OPENBLAS_NUM_THREADS": "1"} | allocator()
                command = [sys.executable, __file__, *words]
                found = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=quiet)
                rows.append(json.loads(found.stdout) | provenance())
                write_json(RESULTS, {"rows": rows})
    show(rows)


if __name__ == "__main__":
    main()
