"""The code of LEMS's authors on the texts of `decoders.py`: what our rows are held against.

    git clone https://github.com/lems-svd/lems
    pip install pulp optuna gurobipy
    python benchmarks/lems.py path/to/lems --params 0.8 0.6
    python benchmarks/lems.py --show

KFAC-SVD with the ranks of its search (Thoma et al., ICML 2026), and the same with one share for
every matrix, on SmolLM2-135M. Nothing of theirs is changed: it asks for a GPU by name, and is
given the CPU. It imports `gurobipy`, whose free licence is for smaller problems, and solves with
CBC, as its settings allow. The search measures what one cut costs on `--search` texts of
`--search-length` tokens, of which it counts those after the 256th, and tries ten settings of its
depth term by the same texts. Factors stay in float32.

The rows of one seed share the decomposition and what was measured, which are kept in `--work`: its
seconds are in the first of them alone.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from decoders import allocator, texts
from provenance import provenance

from lpaf_jax.checkpoints import resolve_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.core.machine import peak_memory, usable_cpus
from lpaf_jax.data.text import perplexity

RESULTS = Path(__file__).parent / "results" / "lems.json"
ROWS = {"KFAC-SVD, LEMS": "lems", "KFAC-SVD, uniform": "uniform"}
# Of its configs/config.yaml.
SPARED = ["norm", "patch_embed", "head", "downsample", "decoder.project_", "dt_proj"]


def on_the_cpu() -> None:
    """Let code that names CUDA have the CPU."""
    import torch

    torch.set_num_threads(usable_cpus())
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    torch.cuda.device = lambda of: contextlib.nullcontext()  # type: ignore[assignment, misc]
    torch.cuda.synchronize = lambda device=None: None  # type: ignore[assignment]
    torch.Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign]


def cut(args: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    given, work = texts(args), args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(args.checkout.resolve()))
    os.chdir(work)  # where it leaves its pictures and logs
    on_the_cpu()
    import torch
    from compression.svd_core import ModelFactorizer
    from transformers import AutoModelForCausalLM

    folder = resolve_model("smollm2")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf")
    model = model.to(torch.float32).eval()
    before = {name: perplexity_of(model, given[name]) for name in ("imdb", "manual")}

    def batches(pieces: np.ndarray) -> list[dict[str, Any]]:
        return [{"input_ids": torch.tensor(ids[None], dtype=torch.long)} for ids in pieces]

    search = {
        "ratio_target": args.share,
        "sequence_length": args.search_length,
        "use_cache": True,
        "workspace_dir": str(work),
    }
    if ROWS[args.row] == "lems":  # its configs/search/lems.yaml, but for the solver
        search |= {"sensitivity_loss": "energy2_normal_klscaled", "measurements_points": "0.1"}
        search |= {"crosslayer_term": "harmonicv2", "halpha": 0.0, "hgamma": 5.0}
        search |= {"enforce_rank_multiples_of": 8, "solver": "cbc"}
    matrices = set(weights_of(model))
    whole = sum(math.prod(weight.shape) for weight in weights_of(model).values())
    begun = time.perf_counter()
    factorizer = ModelFactorizer(
        svd_method="kfac_svd",
        # "fast" is the same without copies between a GPU and its host.
        svd_method_args={"vision": False, "fast": True, "workspace_dir": str(work)},
        search_method=ROWS[args.row],
        search_method_args=search,
    )
    with contextlib.redirect_stdout(sys.stderr):
        *_, model, _ranks = factorizer.factorize_and_search(
            model,
            calib_data=batches(given["calibration"]),
            eval_data=batches(given["calibration"][: args.search, : args.search_length]),
            mixup_fn=None,
            calib_dataset_name=f"imdb-{args.samples}-{args.seed}",
            name_omit=SPARED,
        )
    seconds, peak = time.perf_counter() - begun, peak_memory()
    left = weights_of(model)
    return {
        "row": args.row,
        "params": args.share,
        "seed": args.seed,
        "samples": args.samples,
        "search": {"texts": args.search, "length": args.search_length},
        "perplexity": {
            name: {"dense": dense, "compressed": perplexity_of(model, given[name])}
            for name, dense in before.items()
        },
        "kept": sum(math.prod(weight.shape) for weight in left.values()) / whole,
        "matrices_dense": len(matrices & left.keys()),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak,
    }


def weights_of(model: Any) -> dict[str, Any]:
    """Of all linear layers in blocks, factors included, by name."""
    import torch

    return {
        name: layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and "layers" in name
    }


def perplexity_of(model: Any, pieces: np.ndarray) -> float:
    """As `decoders.py` has it: of all tokens but the first of each piece."""
    import torch

    total = 0.0
    with torch.no_grad():
        for ids in torch.tensor(pieces, dtype=torch.long):
            logits = model(input_ids=ids[None]).logits[0, :-1]
            lost = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
            total -= float(lost)
    return perplexity(total, pieces.shape[0] * (pieces.shape[1] - 1))


def show(rows: list[dict[str, Any]]) -> None:
    print("| | kept | IMDb | manual | dense matrices | seconds | peak memory | seed |")
    print("|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (-row["params"], row["row"], row["seed"])):
        judged = (row["perplexity"][text] for text in ("imdb", "manual"))
        cells = [row["row"], f"{100 * row['params']:g} %"]
        cells += [f"{of['dense']:.1f} → {of['compressed']:.1f}" for of in judged]
        cells += [f"{row['matrices_dense']} of 210", f"{row['seconds']:.0f}"]
        cells += [f"{row['peak_memory_bytes'] / 2**30:.2f} GiB", str(row["seed"])]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, nargs="?", help="of its repository")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--params", type=float, nargs="+", default=[0.8, 0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=128, help="pieces to calibrate with")
    parser.add_argument("--held-out", type=int, default=40, help="pieces of each text to judge by")
    parser.add_argument("--search", type=int, default=8, help="texts of the search, 8 or more")
    parser.add_argument("--search-length", type=int, default=384, help="tokens of each, over 256")
    parser.add_argument("--work", type=Path, default=Path("runs/lems"))
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.show:
        show(read_json(RESULTS)["rows"])
        return
    if args.checkout is None:
        parser.error("name the checkout of its repository")
    if args.row is not None:
        print(json.dumps(cut(args)))
        return
    rows: list[dict[str, Any]] = read_json(RESULTS)["rows"] if RESULTS.is_file() else []
    done = {tuple(row[name] for name in ("row", "params", "seed", "samples")) for row in rows}
    for seed in args.seeds:
        for share in args.params:
            for name in args.rows:
                if (name, share, seed, args.samples) in done:
                    continue
                print(f"{name}, {100 * share:g} %, seed {seed}", file=sys.stderr, flush=True)
                words = ["--row", name, "--share", str(share), "--seed", str(seed)]
                for option in ("samples", "held_out", "search", "search_length", "work"):
                    words += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
                command = [sys.executable, __file__, str(args.checkout), *words]
                quiet = {**os.environ, "MPLBACKEND": "Agg"} | allocator()  # no picture is shown
                found = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=quiet)
                theirs = {"lems_commit": commit_of(args.checkout)}
                made = provenance()  # but where the checkout lies is of no use to others
                made["command"] = made["command"].replace(str(args.checkout), args.checkout.name)
                last = found.stdout.splitlines()[-1]  # the solver writes there, too
                rows.append(json.loads(last) | theirs | made)
                write_json(RESULTS, {"rows": rows})
    show(rows)


def commit_of(checkout: Path) -> str:
    told = ["git", "rev-parse", "HEAD"]
    return subprocess.run(told, check=True, capture_output=True, text=True, cwd=checkout).stdout[:7]


if __name__ == "__main__":
    main()
