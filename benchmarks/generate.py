"""Tokens a second of decoders that write: dense and compressed, here and in PyTorch.

    python benchmarks/generate.py smollm2 runs/decoder
    python benchmarks/generate.py --show

Prompts of 128 tokens of reviews are read, and 64 tokens are written greedily with a cache, at
batches of 1 and 8, in float32. Reading and writing are timed apart: tokens of all prompts to the
first token that is written, and tokens of all texts after it. Each model has a process to itself in
each framework, which compiles first; these take turns over the rounds, and a figure is the median
of them. Greedy tokens of both frameworks are compared.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from provenance import provenance

from lpaf_jax.checkpoints import find_model, load_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.core.machine import usable_cpus
from lpaf_jax.data import load_task, load_tokenizer, text_tokens
from lpaf_jax.evaluation.generate import Generator

RESULTS = Path(__file__).parent / "results" / "generate.json"
PROMPT, WRITTEN = 128, 64
BATCHES = (1, 8)
Writer = Callable[[np.ndarray, int], np.ndarray]


def in_jax(folder: Path) -> Writer:
    generator = Generator(load_model(folder, head="lm"))

    def write(ids: np.ndarray, count: int) -> np.ndarray:
        return np.stack(list(generator.tokens(ids, count)), axis=1)

    return write


def in_torch(folder: Path) -> Writer:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(usable_cpus())
    packed = {"gguf_file": "model.gguf"} if (folder / "model.gguf").exists() else {}
    found = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **packed)
    model: Any = found.to(torch.float32).eval()

    def write(ids: np.ndarray, count: int) -> np.ndarray:
        given = torch.tensor(ids)
        whole = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        tokens: np.ndarray = whole[:, ids.shape[1] :].numpy()
        return tokens

    return write


def measure(model: str, framework: str) -> dict[str, Any]:
    """Seconds for a first token, and for all, by batch."""
    folder = find_model(Path(model), "final")
    write = {"jax": in_jax, "torch": in_torch}[framework](folder)
    tokens_of = text_tokens(load_tokenizer(folder), load_task("imdb").test.texts)
    stream = np.fromiter(islice(chain.from_iterable(tokens_of), PROMPT * max(BATCHES)), np.int32)
    found: dict[str, Any] = {}
    for batch in BATCHES:
        ids = stream[: batch * PROMPT].reshape(batch, PROMPT)
        tokens = write(ids, WRITTEN)  # compiles
        seconds = []
        for count in (1, WRITTEN):
            begun = time.perf_counter()
            write(ids, count)
            seconds.append(time.perf_counter() - begun)
        found[str(batch)] = {
            "read": batch * PROMPT / seconds[0],
            "written": batch * (WRITTEN - 1) / (seconds[1] - seconds[0]),
            "tokens": tokens.tolist(),
        }
    return found


def run(models: list[str], rounds: int) -> None:
    pairs = [(model, framework) for model in models for framework in ("jax", "torch")]
    taken: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in pairs}
    for turn in range(rounds):
        for pair in pairs[turn % len(pairs) :] + pairs[: turn % len(pairs)]:
            print(f"round {turn + 1} of {rounds}: {' in '.join(pair)}", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--one", *pair]
            quiet = {**os.environ, "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=quiet)
            taken[pair].append(json.loads(done.stdout))
    rows = []
    for model in models:
        for batch in map(str, BATCHES):
            row: dict[str, Any] = {"model": model, "batch": int(batch)}
            for framework in ("jax", "torch"):
                of = [each[batch] for each in taken[model, framework]]
                row[framework] = {
                    name: {"median": median(x := [each[name] for each in of]), "all": x}
                    for name in ("read", "written")
                }
            ours, theirs = (
                np.array(taken[model, framework][0][batch]["tokens"])
                for framework in ("jax", "torch")
            )
            row["same_tokens"] = float(np.mean(ours == theirs))
            rows.append(row)
    about = {"prompt": PROMPT, "written": WRITTEN, "rounds": rounds, "cpus": usable_cpus()}
    write_json(RESULTS, about | {"rows": rows} | provenance())


def show() -> None:
    print("| model | batch | read, here | PyTorch | written, here | PyTorch | same tokens |")
    print("|---|---|---|---|---|---|---|")
    for row in read_json(RESULTS)["rows"]:
        cells = [row["model"], str(row["batch"])]
        for name in ("read", "written"):
            cells += [f"{row[framework][name]['median']:.0f}" for framework in ("jax", "torch")]
        print(f"| {' | '.join(cells)} | {row['same_tokens']:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="folders of runs or models, or smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    if not args.show:
        if not args.models:
            parser.error("name at least one model")
        run(args.models, args.rounds)
    show()


if __name__ == "__main__":
    main()
