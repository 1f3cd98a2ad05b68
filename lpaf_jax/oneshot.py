"""Compression of a decoder without training: `lpaf compress MODEL --one-shot`, top to bottom."""

import dataclasses
import datetime
import json
import math
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lpaf_jax.compress.oneshot import (
    Cut,
    Outcome,
    Plan,
    Store,
    compress_decoder,
)
from lpaf_jax.data import Tokenizer, load_tokenizer, sample_blocks, text_tokens, text_windows
from lpaf_jax.errors import LpafError, SettingError, mended_by
from lpaf_jax.factors import LOW_RANK
from lpaf_jax.files import atomic_dir, free_bytes, read_json, write_json
from lpaf_jax.importance import fisher_scores
from lpaf_jax.kinds import length_for
from lpaf_jax.machine import peak_memory, versions
from lpaf_jax.models import (
    DecoderOnDisk,
    as_function,
    check_saved,
    load_model,
    parameters,
    resolve_model,
)
from lpaf_jax.models.checkpoint import saved_config, write_beside
from lpaf_jax.models.names import file_name
from lpaf_jax.models.tensors import ShardWriter, share_weights
from lpaf_jax.models.weight_files import weight_files
from lpaf_jax.oneshot_mark import changes, mark_of
from lpaf_jax.oneshot_settings import DEFAULT_LENGTH, OneShot
from lpaf_jax.progress import Progress
from lpaf_jax.report.card import one_shot_card
from lpaf_jax.train import LANGUAGE

RESULT = "one_shot.json"


def compress_one_shot(
    model: Path | str, *, calibration: Path | str, out: Path | str, **chosen: Any
) -> dict[str, Any]:
    """Compress a decoder without training it, matrix by matrix from disk.

    Args:
        model: a folder, or a hub id.
        calibration: a text file.
        out: folder of the result: the model in `out/model`, what was found in `out/one_shot.json`.
        chosen: any other field of `OneShot`.

    Returns:
        what `one_shot.json` holds.

    Raises:
        LpafError: something asked for cannot be done; said before any long work starts.
    """
    given = {"held_out": None} | chosen
    held_out = None if given["held_out"] is None else Path(given["held_out"])
    settings = OneShot(
        model=str(model),
        calibration=Path(calibration),
        out=Path(out),
        **{**given, "held_out": held_out},
    )
    return run_one_shot(settings)


def run_one_shot(settings: OneShot) -> dict[str, Any]:
    """Do, or finish, what `settings` describe; see `compress_one_shot`."""
    started = time.monotonic()
    _check(settings)
    source_folder = resolve_model(settings.model)
    source = DecoderOnDisk(source_folder)
    tokenizer = load_tokenizer(source_folder)
    length = length_for(settings.length, DEFAULT_LENGTH, source.positions)
    calibration = sample_blocks(
        text_tokens(tokenizer, settings.calibration, settings.text_column),
        length,
        settings.samples,
        settings.seed,
    )
    held_out = _held_out(settings, tokenizer, length)
    read = {"calibration_tokens": calibration.size}
    read |= {} if held_out is None else {"held_out_tokens": held_out.size}
    mark = mark_of(settings, length, source, calibration, held_out)
    result, work = settings.out / RESULT, settings.out / "work"
    progress = Progress(settings.out, settings.quiet)
    if result.is_file():
        found = _finished(result, mark)
        progress.say(f"{settings.out} is finished; there is nothing left to do")
        return read | found
    source.check_finite()
    _claim(work, mark, settings.out)
    _check_space(source, settings.out)
    matrices = source.matrices()
    progress.say(
        f"{settings.model}: {len(matrices)} matrices in {source.blocks} blocks, "
        f"{settings.params:.0%} of their numbers to keep"
    )
    progress.say(
        f"calibration: {len(calibration)} pieces of {length} tokens (at most {settings.samples})"
    )
    rows = _fisher_rows(source_folder, calibration) if settings.weighting == "fisher" else None
    plan = Plan(settings.params, settings.weighting, settings.ranks, rows)
    store = Store(work)
    outcome = compress_decoder(
        source, calibration, plan, store, held_out=held_out, say=progress.say
    )
    seconds = time.monotonic() - started
    found = _summary(settings, source, outcome, length, seconds) | read
    found |= {name: mark[name] for name in ("fingerprint", "read")}
    _assemble(source, store, outcome, settings.out / "model", one_shot_card(found))
    found["bytes_on_disk"] = {
        name: sum(file.stat().st_size for file in weight_files(folder))
        for name, folder in (("dense", source_folder), ("compressed", settings.out / "model"))
    }
    # What lies there and is no part of the model is lost by reading, and not by compression.
    found["bytes_on_disk"]["dense"] -= source.unread_bytes
    write_json(result, found)
    shutil.rmtree(work, ignore_errors=True)
    progress.close()
    return found


def _finished(result: Path, mark: dict[str, Any]) -> dict[str, Any]:
    """What was found by the finished run whose `one_shot.json` this is.

    Raises:
        LpafError: it was a run of something else, or it or its model is damaged or gone.
    """
    with mended_by(f"delete {result} and give the same command again, which makes what is missing"):
        found = read_json(result)
        if not isinstance(found, dict):
            raise LpafError(f"{result} does not hold the figures of a run")
        if found.get("fingerprint") == mark["fingerprint"]:
            check_saved(result.parent / "model")
            return found
    theirs = {**found, "settings": found.get("settings", {}) | {"length": found.get("length")}}
    raise LpafError(
        f"{result.parent} holds the result of other settings, text or weights"
        f"{changes(theirs, mark)}: name another --out, or remove it"
    )


def _check(settings: OneShot) -> None:
    if not 0 < settings.params < 1:
        raise SettingError(("params",), f"is {settings.params}, but must lie between 0 and 1")
    for name in ("samples", "length"):
        value = getattr(settings, name)
        if value is not None and value < (2 if name == "length" else 1):
            raise SettingError((name,), f"is {value}, which is too few")
    for path in (settings.calibration, settings.held_out):
        if path is not None and not path.is_file():
            raise LpafError(f"{path} is no file; name a text file")


def _held_out(settings: OneShot, tokenizer: Tokenizer, length: int) -> np.ndarray | None:
    if settings.held_out is None:
        return None
    stream = text_tokens(tokenizer, settings.held_out, settings.text_column)
    whole = (w.ids for w in text_windows(stream, length) if len(w.ids) == length)
    found = list(islice(whole, settings.samples))
    if not found:
        raise LpafError(f"{settings.held_out} has less than the {length} tokens of one piece")
    return np.stack(found)


def _claim(work: Path, mark: dict[str, Any], out: Path) -> None:
    """Take the folder of finished blocks, unless it is of other settings."""
    note = work / "fingerprint.json"
    if note.is_file():
        theirs = read_json(note)
        if not isinstance(theirs, dict):  # of an earlier version
            theirs = {"fingerprint": theirs}
        if theirs.get("fingerprint") != mark["fingerprint"]:
            raise LpafError(
                f"{out} holds an unfinished run of other settings, text or weights"
                f"{changes(theirs, mark)}: name another --out, or remove {work}"
            )
    write_json(note, mark)


def _check_space(source: DecoderOnDisk, out: Path) -> None:
    """Blocks, and then the whole, lie beside one another for a moment."""
    needed = 2 * sum(file.stat().st_size for file in weight_files(source.folder))
    if free_bytes(out) < needed:
        raise LpafError(
            f"{out} is on a disk with {free_bytes(out) / 1e9:.1f} GB free, and up to "
            f"{needed / 1e9:.1f} GB are needed"
        )


def _fisher_rows(folder: Path, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """`Σ_j E[(∂L/∂W_ij)²]` by path of the layer; model and gradients are in memory, whole."""
    model = load_model(folder, head="lm")
    batches = (
        {
            "input_ids": ids[None],
            "attention_mask": np.ones_like(ids)[None],
            "weight": np.ones(1, np.float32),
        }
        for ids in tokens
    )
    found = fisher_scores(as_function(model), parameters(model), batches, LANGUAGE.loss, chunk=1)
    return {
        path.removesuffix(".kernel"): np.asarray(scores.sum(1)) for path, scores in found.items()
    }


def _summary(
    settings: OneShot, source: DecoderOnDisk, outcome: Outcome, length: int, seconds: float
) -> dict[str, Any]:
    numbers = {path: math.prod(shape) for path, shape in source.shapes.items()}
    dense = sum(m * n for m, n in source.matrices().values())
    kept = sum(_numbers(cut) for cut in outcome.cuts)
    total = sum(numbers.values())
    return {
        "model": settings.model,
        "family": source.name,
        "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "length": length,
        "encoder_params_ratio": kept / dense,
        "total_params_ratio": (total - dense + kept) / total,
        "params": {
            "dense": {"encoder": dense, "total": total},
            "compressed": {"encoder": kept, "total": total - dense + kept},
        },
        "perplexity": outcome.perplexity,
        "output_energy_lost": float(np.mean([cut.error for cut in outcome.cuts])),
        "matrices": [cut._asdict() for cut in outcome.cuts],
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _numbers(cut: Cut) -> int:
    m, n = cut.shape
    return m * n if cut.rank is None else cut.rank * (m + n)


def _assemble(
    source: DecoderOnDisk, store: Store, outcome: Outcome, folder: Path, card: str
) -> None:
    """Write the model folder from the finished blocks and what lies in none."""
    records = {cut.path: LOW_RANK.of_rank(cut.rank) for cut in outcome.cuts if cut.rank is not None}
    with atomic_dir(folder) as target:
        config = saved_config(source.values, source.architecture, records)
        dtype = source.values.get("dtype", source.values.get("torch_dtype"))
        config |= {} if dtype is None else {"dtype": dtype}
        write_beside(target, source.folder, config, card)
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
