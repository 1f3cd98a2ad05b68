r"""A checkpoint larger than the memory it is compressed in: peak memory and time, block by block.

    python benchmarks/one_shot_memory.py

Writes a synthetic checkpoint in the layout of Llama (random weights of falling spectra, in shards
with an index), at least 3 GiB, and compresses it with `lpaf compress --calibration` by each recipe
in a process of its own, which tells its peak memory. Aim: less than 2.5 GiB. Before that one loads
it whole; its aim is less than 1.3 times the parameters. The checkpoint is removed at the end.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from lpaf_jax.checkpoints.tensors import ShardWriter
from lpaf_jax.checkpoints.weight_files import weight_files
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.core.machine import usable_cpus, versions

HERE = Path(__file__).parent
GIB = 2**30
# What loading takes above what the process had, as a share of the parameters.
LOAD = """
import sys
from pathlib import Path
import jax.numpy as jnp
from lpaf_jax.core.machine import peak_memory
from lpaf_jax.checkpoints import load_model
from lpaf_jax.models import parameters
jnp.zeros(3).block_until_ready()
before = peak_memory()
size = sum(x.nbytes for x in parameters(load_model(Path(sys.argv[1]))).values())
print((peak_memory() - before) / size)
"""
WORDS = 1000  # of the text; the table of tokens is far larger


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=2816)
    parser.add_argument("--vocabulary", type=int, default=202_048, help="that of Llama 4")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--recipes", nargs="+", default=["drone", "channels"])
    parser.add_argument("--work", type=Path, default=Path("runs/one_shot_memory"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "one_shot_memory.json")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    folder = args.work / "model"
    folder.mkdir(parents=True)
    write_checkpoint(folder, args)
    for name, seed in (("calibration", 1), ("held_out", 2)):
        words = np.random.default_rng(seed).zipf(1.2, 10 * args.samples * args.length) % WORDS
        (args.work / f"{name}.txt").write_text(" ".join(f"w{i}" for i in words))
    loading = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True)
    rows = [compressed(recipe, folder, args) for recipe in args.recipes]
    size = sum(file.stat().st_size for file in weight_files(folder))
    result: dict[str, Any] = {
        **provenance(),
        "shape": {n: getattr(args, n) for n in ("layers", "hidden", "inner", "vocabulary")},
        "text": {"samples": args.samples, "length": args.length},
        "checkpoint_gib": round(size / GIB, 3),
        "loading_peak_over_parameters": round(float(loading.stdout), 3),
        "rows": rows,
        "threads": usable_cpus(),
        "versions": versions(),
    }
    write_json(args.out, result)
    print(json.dumps(result, indent=2))
    shutil.rmtree(args.work)


def compressed(recipe: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What one recipe takes."""
    out = args.work / recipe
    command = [
        *(sys.executable, "-m", "lpaf_jax.cli", "compress", str(folder)),
        *("--calibration", str(args.work / "calibration.txt")),
        *("--held-out", str(args.work / "held_out.txt"), "--params", "0.8"),
        *("--samples", str(args.samples), "--length", str(args.length)),
        *("--recipe", recipe, "--out", str(out)),
    ]
    subprocess.run(command, check=True)
    found = read_json(out / "metrics.json")
    shutil.rmtree(out)
    return {
        "recipe": recipe,
        "compressed_gib": round(found["bytes_on_disk"]["final"] / GIB, 3),
        "peak_memory_gib": round(found["peak_memory_bytes"] / GIB, 3),
        "seconds": found["seconds"]["total"],
    }


def write_checkpoint(folder: Path, args: argparse.Namespace) -> None:
    """Random tensors, one at a time."""
    hidden, inner, shared = args.hidden, args.inner, args.hidden // 4
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": args.vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": args.layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": shared // 64,
        "max_position_embeddings": 2048,
        "dtype": "float32",
    }
    write_json(folder / "config.json", values)
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    random = np.random.default_rng(0)
    writer = ShardWriter(folder)

    def add(name: str, rows: int, columns: int) -> None:
        # The variance of the columns falls, and with it the spectrum.
        scale = (0.05 / (1 + np.arange(columns) / 64) ** 0.5).astype(np.float32)
        writer.add(name, random.standard_normal((rows, columns), np.float32) * scale)

    add("model.embed_tokens.weight", args.vocabulary, hidden)
    for i in range(args.layers):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            writer.add(f"{layer}.{norm}.weight", np.ones(hidden, np.float32))
        shapes = {"q": (hidden, hidden), "k": (shared, hidden), "v": (shared, hidden)}
        for kind, shape in {**shapes, "o": (hidden, hidden)}.items():
            add(f"{layer}.self_attn.{kind}_proj.weight", *shape)
        shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        for kind, shape in shapes.items():
            add(f"{layer}.mlp.{kind}_proj.weight", *shape)
    writer.add("model.norm.weight", np.ones(hidden, np.float32))
    add("lm_head.weight", args.vocabulary, hidden)
    writer.close()


if __name__ == "__main__":
    main()
