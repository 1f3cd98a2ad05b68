"""A cut decoder healed by all of its numbers or by adapters, and four bits beside fewer numbers.

    python benchmarks/healing.py                # an hour on two cores
    python benchmarks/healing.py --params 0.8   # one size
    python benchmarks/healing.py --show         # print what is there, run nothing

SmolLM2-135M, cut as in `drone` (SVD-LLM's objective) by 128 pieces of 256 tokens of IMDb and tuned
for one pass over the same, by the next token alone, by AdamW: 16 steps of 8 pieces. Judged by other
reviews, and by Python's own reference manual. Bytes are of the whole model, in bfloat16; in the
rows NF4 the matrices of blocks are stored in that, as are adapters' matrices while these are
trained, which are then merged into those of the disk. Each row is a process of its own and is kept
as it is finished.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from decoders import manual
from provenance import provenance

from lpaf_jax.checkpoints import load_model, resolve_model
from lpaf_jax.core.files import read_json, write_json
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
from lpaf_jax.linalg import nf4, nf4_bytes, nf4_dense
from lpaf_jax.models import compressible, parameters, set_parameters
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.runs.run import Run
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.runs.text_decoder import Decoder
from lpaf_jax.stages.trainer import score_of
from lpaf_jax.tasks.kinds import judged_windows

RESULTS = Path(__file__).parent / "results" / "healing.json"
LENGTH, SAMPLES, HELD_OUT = 256, 128, 80
RANK = 16
# What is trained, by the settings of `Tune`; learning rates are those that are usual for each.
WAYS: dict[str, dict[str, Any]] = {
    "all tuned": {"tune_lr": 5e-5},
    "adapters": {"lora": RANK, "tune_lr": 2e-4},
    "adapters, matrices in NF4": {"lora": RANK, "lora_base": "nf4", "tune_lr": 2e-4},
}
ROWS = ("as it is", "NF4", *WAYS)


def texts() -> dict[str, np.ndarray]:
    tokenizer, reviews = load_tokenizer(resolve_model("smollm2")), load_task("imdb")
    stream = text_tokens(tokenizer, reviews.train.texts)
    found = {"calibration": sample_blocks(stream, LENGTH, SAMPLES, 0)}
    for name, of in (("imdb", reviews.test.texts), ("manual", manual())):
        windows = text_windows(text_tokens(tokenizer, of), LENGTH)
        whole = (window.ids for window in windows if len(window.ids) == LENGTH)
        found[name] = np.stack(list(islice(whole, HELD_OUT)))
    return found


def measure(row: str, share: float, work: Path) -> dict[str, Any]:
    """One row, in this process."""
    given, seconds = texts(), 0.0
    folder = cut_model(share, work)
    if row in WAYS:
        begun = time.perf_counter()
        folder = tuned(row, folder, given, work / "tuned")
        seconds = time.perf_counter() - begun
    peak = peak_memory()
    model = load_model(folder, head="lm")
    params = parameters(model)
    matrices = compressible(params)
    size = 2 * sum(x.size for x in params.values())
    if row == "NF4":
        rounded = {path: nf4_dense(nf4(x), x.shape) for path, x in matrices.items()}
        set_parameters(model, rounded)
        size += sum(nf4_bytes(x.shape) - 2 * x.size for x in matrices.values())
    scores = {
        name: score_of(model, judged_windows(packed(list(given[name]), 0)), 1)(parameters(model))
        for name in ("imdb", "manual")
    }
    return {
        "row": row,
        "params": share,
        "bytes": size,
        "perplexity": scores,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak,
        "trained_tokens": int(given["calibration"].size) if row in WAYS else 0,
    }


def cut_model(share: float, work: Path) -> Path:
    if share == 1:
        return resolve_model("smollm2")
    out = work / f"cut-{share:g}"
    chosen: Any = {"recipe": "drone", "params": share, "samples": SAMPLES, "length": LENGTH}
    compress("smollm2", calibration="imdb", held_out="imdb", out=out, quiet=True, **chosen)
    return out / "model"


def tuned(row: str, cut: Path, given: dict[str, np.ndarray], out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    chosen = {"recipe": "drone", "samples": SAMPLES, "length": LENGTH, "batch": 8}
    chosen |= {"tune_epochs": 1.0, **WAYS[row]}
    settings = make_settings("smollm2", out=out, calibration="imdb", held_out="imdb", **chosen)
    job = Run(settings)
    with job.opened(row):
        first, last = (name for name, _ in settings.steps_of_texts)
        shutil.copytree(cut, job.stage(first))
        progress = Progress(job.folder, quiet=False)
        decoder = Decoder(resolve_model("smollm2"))
        decoder.tune(settings, given["calibration"], given["imdb"], job, progress)
    return job.stage(last)


def show(rows: list[dict[str, Any]]) -> None:
    """As Markdown."""
    print("| kept | | bytes | IMDb | manual | seconds of tuning | peak memory |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (-row["params"], ROWS.index(row["row"]))):
        cells = [f"{100 * row['params']:g} %", row["row"], f"{row['bytes'] / 1e6:.0f} MB"]
        cells += [f"{row['perplexity'][text]:.1f}" for text in ("imdb", "manual")]
        cells.append(f"{row['seconds']:.0f}" if row["row"] in WAYS else "")
        memory = f"{row['peak_memory_bytes'] / 2**30:.2f} GiB"
        cells.append(memory if row["row"] in WAYS else "")
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=float, nargs="+", default=[1.0, 0.8, 0.6])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--work", type=Path, default=Path("runs/healing"))
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row is not None:
        print(json.dumps(measure(args.row, args.params[0], args.work)))
        return
    rows: list[dict[str, Any]] = read_json(RESULTS)["rows"] if RESULTS.is_file() else []
    if not args.show:
        done = {(row["row"], row["params"]) for row in rows}
        for share in args.params:
            for name in args.rows:
                if (name, share) in done:
                    continue
                print(f"{name}, {100 * share:g} %", file=sys.stderr, flush=True)
                words = ["--row", name, "--params", str(share), "--work", str(args.work)]
                command = [sys.executable, __file__, *words]
                if name in WAYS:  # cut in a process of its own: the peak is that of tuning alone
                    cut = ["--row", "as it is", *words[2:]]
                    subprocess.run([*command[:2], *cut], check=True, stdout=subprocess.DEVNULL)
                found = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                # The last line: before it stands what tuning says of its way.
                rows.append(json.loads(found.stdout.splitlines()[-1]) | provenance())
                write_json(RESULTS, {"rows": rows})
    show(rows)


if __name__ == "__main__":
    main()
