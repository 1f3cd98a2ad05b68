"""A run without a task: a decoder is factorized by a text alone, block by block from disk."""

import datetime
import hashlib
import json
import math
import time
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lpaf_jax.checkpoints import DecoderOnDisk, is_hub_id, load_model, resolve_model
from lpaf_jax.checkpoints.checkpoint import saved_config, write_beside
from lpaf_jax.checkpoints.names import file_name
from lpaf_jax.checkpoints.tensors import ShardWriter, share_weights
from lpaf_jax.checkpoints.weight_files import weight_files
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.files import atomic_dir
from lpaf_jax.core.machine import peak_memory, versions
from lpaf_jax.core.progress import Progress
from lpaf_jax.data import Tokenizer, load_tokenizer, sample_blocks, text_tokens, text_windows
from lpaf_jax.factorization.blocks import Cut, Outcome, Plan, Store, compress_decoder
from lpaf_jax.factors import LOW_RANK
from lpaf_jax.importance import Subject
from lpaf_jax.models import compressible, parameters
from lpaf_jax.recipes.base import FINAL
from lpaf_jax.report import result_text, write_report
from lpaf_jax.runs.outcome import about, describe, finish, full_disk_explained
from lpaf_jax.runs.run import Run
from lpaf_jax.runs.settings import Settings, as_json
from lpaf_jax.solvers import check_biases
from lpaf_jax.tasks.kinds import length_for
from lpaf_jax.tasks.options import TEXT_LENGTH
from lpaf_jax.train import LANGUAGE

_COLUMN = "text"
# Pieces of the calibration text that are judged where there is no held-out text.
_JUDGED = 8


def run_text(settings: Settings) -> dict[str, Any]:
    """Do, or finish, a run without a task; see `lpaf_jax.runs.pipeline.compress`."""
    started = time.monotonic()
    _check_files(settings)
    if settings.distributed or settings.fsdp > 1:
        raise SettingError(
            ("distributed",) if settings.distributed else ("fsdp",),
            "is for training: without a task one process compresses block by block",
        )
    job = Run(settings)
    progress = Progress(job.folder, settings.quiet)
    if is_hub_id(settings.model):
        progress.say(f"looking for {settings.model} at the hub")
    source_folder = resolve_model(settings.model)
    source = DecoderOnDisk(source_folder)
    biases = {path: f"{path}.bias" in source.shapes for path in source.matrices()}
    check_biases(settings.factorize.solver, biases)
    tokenizer = load_tokenizer(source_folder)
    assert settings.calibration is not None
    length = length_for(settings.length, TEXT_LENGTH, source.positions)
    calibration = sample_blocks(
        text_tokens(tokenizer, settings.calibration, settings.text_column or _COLUMN),
        length,
        settings.samples,
        settings.seed,
    )
    held_out = _held_out(settings, tokenizer, length)
    judged = calibration[:_JUDGED] if held_out is None else held_out
    needs = 2 * sum(file.stat().st_size for file in weight_files(source.folder))
    mark = _fingerprint(source, calibration, held_out)
    if not (job.folder / "metrics.json").is_file():
        source.check_finite()  # before the folder is made
    with job.opened(mark, needs), full_disk_explained(job), closing(progress):
        metrics = job.finished()
        if metrics is not None:
            job.tidy()
            if not (job.folder / "report.html").is_file():
                write_report(job.folder)
            progress.say(f"{job.folder} is finished; there is nothing left to do")
            return metrics
        _announce(settings, source, calibration, progress)
        store = Store(job.checkpoint("blocks"))
        outcome = compress_decoder(
            source,
            calibration,
            _plan(settings, source_folder, calibration),
            store,
            held_out=judged,
            say=progress.say,
        )
        metrics = _metrics(settings, source, outcome, length, time.monotonic() - started)
        metrics["data"] = {"calibration_tokens": calibration.size, "judged_tokens": judged.size}
        metrics["judged_by"] = "calibration text" if held_out is None else "held-out text"
        _assemble(source, store, outcome, job.stage(FINAL))
        metrics["bytes_on_disk"] = {
            # What lies there and is no part of the model is lost by reading, not by compression.
            "dense": _bytes(source_folder) - source.unread_bytes,
            FINAL: _bytes(job.stage(FINAL)),
        }
        finish(job, metrics)
        progress.log(f"finished\n{result_text(metrics)}")
    return metrics


def _check_files(settings: Settings) -> None:
    for path in (settings.calibration, settings.held_out):
        if path is not None and not path.is_file():
            raise LpafError(f"{path} is no file; name a text file")


def _announce(
    settings: Settings, source: DecoderOnDisk, calibration: np.ndarray, progress: Progress
) -> None:
    share, chosen = settings.share, settings.factorize
    kept = f"rank {chosen.rank}" if share is None else f"{share:.0%} of their numbers to keep"
    progress.say(
        f"recipe {settings.method.name}: {settings.model}, {len(source.matrices())} matrices in "
        f"{source.blocks} blocks, {kept}"
    )
    pieces, length = calibration.shape
    progress.say(f"calibration: {pieces} pieces of {length} tokens (at most {settings.samples})")


def _held_out(settings: Settings, tokenizer: Tokenizer, length: int) -> np.ndarray | None:
    if settings.held_out is None:
        return None
    stream = text_tokens(tokenizer, settings.held_out, settings.text_column or _COLUMN)
    whole = (w.ids for w in text_windows(stream, length) if len(w.ids) == length)
    found = list(islice(whole, settings.samples))
    if not found:
        raise LpafError(f"{settings.held_out} has less than the {length} tokens of one piece")
    return np.stack(found)


def _fingerprint(
    source: DecoderOnDisk, calibration: np.ndarray, held_out: np.ndarray | None
) -> dict[str, Any]:
    """Digests of all that is read, as `lpaf_jax.tasks.inputs.fingerprint` has them.

    Weights are known by the sizes and times of their files: they may be larger than memory.
    """
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in weight_files(source.folder)]
    parts = {
        "config.json": json.dumps(source.values, sort_keys=True).encode(),
        "weights": json.dumps(files).encode(),
        "calibration text": calibration.tobytes(),
        "held-out text": b"" if held_out is None else held_out.tobytes(),
    }
    found = {name: _digest([part]) for name, part in parts.items()}
    return {"whole": _digest(parts.values()), **found}


def _digest(pieces: Iterable[bytes]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        whole.update(piece)
    return whole.hexdigest()


def _plan(settings: Settings, folder: Path, tokens: np.ndarray) -> Plan:
    """How the model is cut; gradients, where an importance or a rank rule asks for them."""
    chosen = settings.factorize

    def dense() -> Subject:
        model = load_model(folder, head="lm")

        def batches(count: int | None = None) -> Iterable[dict[str, np.ndarray]]:
            for ids in tokens[:count]:
                yield {
                    "input_ids": ids[None],
                    "attention_mask": np.ones_like(ids)[None],
                    "weight": np.ones(1, np.float32),
                }

        return Subject(
            model=model,
            weights=compressible(parameters(model)),
            scores={},
            masks={},
            second_moments={},
            batches=batches,
            loss=LANGUAGE.loss,
            criterion="sensitivity",
        )

    return Plan(
        importance=chosen.importance,
        solver=chosen.solver,
        ranks=chosen.ranks,
        params=settings.share,
        rank=chosen.rank,
        floor=chosen.floor,
        ridge=chosen.ridge,
        multiple_of=chosen.multiple_of,
        dense=dense,
    )


def _metrics(
    settings: Settings, source: DecoderOnDisk, outcome: Outcome, length: int, seconds: float
) -> dict[str, Any]:
    numbers = {path: math.prod(shape) for path, shape in source.shapes.items()}
    dense = sum(m * n for m, n in source.matrices().values())
    kept = sum(_numbers(cut) for cut in outcome.cuts)
    total = sum(numbers.values())
    ranks = {cut.path: cut.rank for cut in outcome.cuts if cut.rank is not None}
    perplexity = outcome.perplexity
    return {
        "model": settings.model,
        "task": None,
        "kind": "language",
        "family": source.name,
        "metrics": ["perplexity"],
        "recipe": settings.method.name,
        "about": about(settings.method),
        "stages": {
            "dense": {"perplexity": perplexity["dense"]},
            FINAL: {"perplexity": perplexity["compressed"]},
        },
        "described": describe(settings, "perplexity", ranks),
        "retained": None,
        "rank": next(iter(ranks.values())) if len(set(ranks.values())) == 1 else None,
        "ranks": ranks,
        "encoder_params_ratio": kept / dense,
        "total_params_ratio": (total - dense + kept) / total,
        "params": {
            "dense": {"encoder": dense, "total": total},
            FINAL: {"encoder": kept, "total": total - dense + kept},
        },
        "length": length,
        "output_energy_lost": float(np.mean([cut.error for cut in outcome.cuts])),
        "matrices": [cut._asdict() for cut in outcome.cuts],
        "seconds": {FINAL: round(seconds, 1), "total": round(seconds, 1)},
        "peak_memory_bytes": peak_memory(),
        "settings": as_json(settings),
        "versions": versions(),
        "seed": settings.seed,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _numbers(cut: Cut) -> int:
    m, n = cut.shape
    return m * n if cut.rank is None else cut.rank * (m + n)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(folder))


def _assemble(source: DecoderOnDisk, store: Store, outcome: Outcome, folder: Path) -> None:
    """Write the model folder from the finished blocks and what lies in none."""
    records = {cut.path: LOW_RANK.of_rank(cut.rank) for cut in outcome.cuts if cut.rank is not None}
    with atomic_dir(folder) as target:
        config = saved_config(source.values, source.architecture, records)
        dtype = source.values.get("dtype", source.values.get("torch_dtype"))
        config |= {} if dtype is None else {"dtype": dtype}
        write_beside(target, source.folder, config, "")
        writer = ShardWriter(target)
        for path in source.outside():
            writer.add(file_name(path, source.shapes), source.stored(path))
        for index in range(source.blocks):
            kept = store.block(index)
            assert kept is not None, f"block {index} is not finished"
            for name, value in kept[0].items():
                writer.add(name, value)
        writer.close()
        share_weights(target)
