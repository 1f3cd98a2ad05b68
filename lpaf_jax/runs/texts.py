"""A run without a task: a model is factorized by a text alone, and not trained."""

import datetime
import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from lpaf_jax.checkpoints import is_hub_id, resolve_model
from lpaf_jax.checkpoints.weight_files import bytes_of_weights, weight_files
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.files import read_json
from lpaf_jax.core.machine import forget_peak_memory, peak_memory, versions
from lpaf_jax.core.progress import Progress
from lpaf_jax.data import load_tokenizer
from lpaf_jax.data.movie_reviews import SOURCES
from lpaf_jax.factors import read_records
from lpaf_jax.models.families import FAMILIES, family_name
from lpaf_jax.recipes.base import FINAL
from lpaf_jax.report import result_text
from lpaf_jax.runs.outcome import describe, finish, finished, full_disk_explained
from lpaf_jax.runs.run import Run
from lpaf_jax.runs.settings import Settings, command, used
from lpaf_jax.runs.text_decoder import Decoder
from lpaf_jax.runs.text_encoder import Encoder
from lpaf_jax.runs.text_models import Result, TextModel, is_packaged
from lpaf_jax.solvers import check_biases
from lpaf_jax.stages.planned import percent, table_size
from lpaf_jax.tasks.kinds import length_for
from lpaf_jax.tasks.options import TEXT_LENGTH


def run_text(settings: Settings) -> dict[str, Any]:
    """Do, or finish, a run without a task; see `lpaf_jax.runs.pipeline.compress`."""
    started = time.monotonic()
    forget_peak_memory()  # of a run before this one in the same process
    _check_files(settings)
    if settings.distributed or settings.fsdp > 1:
        raise SettingError(
            ("distributed",) if settings.distributed else ("fsdp",),
            "works only in training: without a task, one process compresses block by block",
        )
    job = Run(settings)
    progress = Progress(job.folder, settings.quiet)
    if is_hub_id(settings.model):
        progress.say(f"looking for {settings.model} on the hub")
    folder = resolve_model(settings.model)
    model = _model_in(folder)
    check_biases(settings.factorize.solver, model.biases)
    assert settings.calibration is not None
    length = length_for(settings.length, TEXT_LENGTH, model.positions)
    # A large vocabulary and a long text take half a minute.
    progress.say(f"reading the tokenizer and {settings.calibration}")
    calibration, judged = model.read(settings, load_tokenizer(folder), length)
    judged_by = "held-out text" if settings.held_out else "end of the calibration text"
    if judged is None:
        judged, judged_by = calibration, "calibration text"
    needs = 2 * model.dense_bytes
    needs += model.scratch_bytes(settings, calibration)
    mark = _fingerprint(folder, model, calibration, judged)
    if not (job.folder / "metrics.json").is_file():
        model.check(settings)  # before the folder is made
    with job.opened(mark, needs), full_disk_explained(job), closing(progress):
        metrics = finished(job, progress)
        if metrics is not None:
            return metrics
        _announce(settings, model, calibration, progress)
        work = job.checkpoint("blocks")
        result = model.cut(settings, calibration, judged, work, progress)
        cut = settings.steps_of_texts[0][0]
        model.assemble(result, work, job.stage(cut))
        scores = {"dense": result.scores["dense"], cut: result.scores["compressed"]}
        seconds = {cut: time.monotonic() - started}
        if cut != FINAL:
            assert isinstance(model, Decoder)  # others have refused it
            progress.say("stage 2 of 2: tuning the factors")
            tuned = model.tune(settings, calibration, judged, job, progress)
            scores[FINAL], seconds[FINAL] = tuned
        metrics = _metrics(settings, model, result, length, scores, seconds)
        sizes = {"calibration": model.size(calibration)[1], "judged": model.size(judged)[1]}
        metrics["data"] = {f"{name}_tokens": size for name, size in sizes.items()}
        metrics["judged_by"] = judged_by
        # With the same number of channels gone everywhere it is a model of its family again.
        config = read_json(job.stage(FINAL) / "config.json")
        metrics["ordinary"] = not read_records(config, job.stage(FINAL))
        metrics["bytes_on_disk"] = {
            "dense": model.dense_bytes,
            FINAL: bytes_of_weights(job.stage(FINAL)),
        }
        if settings.nf4:
            assert isinstance(model, Decoder)  # others have refused it
            rounded = model.in_nf4(settings, calibration, judged, job.stage(FINAL), progress)
            metrics["nf4"] = {
                end: {"score": score, "bytes": metrics["bytes_on_disk"][end] - saved}
                for end, (score, saved) in rounded.items()
            }
        if model.codes:
            held = bytes_of_weights(folder)
            metrics["read_from"] = {"bytes": held, "codes": list(model.codes)}
        finish(job, metrics)
        progress.log(f"finished\n{result_text(metrics)}")
    return metrics


def _check_files(settings: Settings) -> None:
    for path in (settings.calibration, settings.held_out):
        if path is not None and not path.is_file() and not is_packaged(path):
            raise LpafError(f"{path} does not exist; name a text file, or {' or '.join(SOURCES)}")


def _model_in(folder: Path) -> TextModel:
    """The model in a folder, as a text can compress it.

    Raises:
        LpafError: the folder holds no dense model that can be.
    """
    family = FAMILIES[family_name(read_json(folder / "config.json"), str(folder))]
    return Encoder(folder) if family.block is None else Decoder(folder)


def _announce(settings: Settings, model: TextModel, calibration: Any, progress: Progress) -> None:
    share, chosen = settings.share, settings.factorize
    kept = (
        f"rank {chosen.rank}" if share is None else f"{percent(share)} of their parameters to keep"
    )
    if chosen.embeddings is not None:
        rows, hidden = model.shapes[f"{FAMILIES[model.family].table}.weight"]
        kept += table_size(chosen, (rows, hidden))
    progress.say(
        f"recipe {settings.method.name}: {settings.model}, {len(model.matrices)} matrices, {kept}"
    )
    pieces, tokens = model.size(calibration)
    progress.say(f"calibration: {pieces} sequences, {tokens:,} tokens")


def _fingerprint(folder: Path, model: TextModel, calibration: Any, judged: Any) -> dict[str, Any]:
    """Digests of all that is read, as `lpaf_jax.tasks.inputs.fingerprint` has them.

    Weights are known by the sizes and times of their files: they may be larger than memory.
    """
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in weight_files(folder)]
    parts = {
        "config.json": json.dumps(read_json(folder / "config.json"), sort_keys=True).encode(),
        "weights": json.dumps(files).encode(),
        "calibration text": model.bytes(calibration),
        "held-out text": model.bytes(judged),
    }
    found = {name: _digest([part]) for name, part in parts.items()}
    return {"whole": _digest(parts.values()), **found}


def _digest(pieces: Iterable[bytes]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        whole.update(piece)
    return whole.hexdigest()


def _metrics(
    settings: Settings,
    model: TextModel,
    result: Result,
    length: int,
    scores: Mapping[str, float],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    numbers = {path: math.prod(shape) for path, shape in model.shapes.items()}
    dense = sum(m * n for m, n in model.matrices.values())
    kept = sum(cut.numbers for cut in result.cuts)
    total = sum(numbers.values())
    left = total - dense + kept - result.saved
    ranks = {
        cut.path: cut.record["rank"]
        for cut in result.cuts
        if cut.record is not None and "rank" in cut.record
    }
    return {
        "model": settings.model,
        "task": None,
        "kind": model.kind,
        "family": model.family,
        "metrics": [model.metric],
        "recipe": settings.method.name,
        "about": settings.method.summary,
        "stages": {name: {model.metric: score} for name, score in scores.items()},
        "described": describe(settings, model.metric, ranks),
        "retained": scores[FINAL] if model.metric == "similarity" else None,
        "rank": next(iter(ranks.values())) if len(set(ranks.values())) == 1 else None,
        "ranks": ranks,
        "encoder_params_ratio": kept / dense,
        "total_params_ratio": left / total,
        "params": {
            "dense": {"encoder": dense, "total": total},
            FINAL: {"encoder": kept, "total": left},
        },
        "length": length,
        "output_energy_lost": float(np.mean([cut.error for cut in result.cuts])),
        "matrices": [cut._asdict() for cut in result.cuts],
        "seconds": {name: round(taken, 1) for name, taken in seconds.items()}
        | {"total": round(sum(seconds.values()), 1)},
        "peak_memory_bytes": peak_memory(),
        "command": command(settings),
        "settings": used(settings),
        "versions": versions(),
        "seed": settings.seed,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
