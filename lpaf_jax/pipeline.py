"""The main job, top to bottom: each stage one call."""

import datetime
import errno
import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lpaf_jax import stages
from lpaf_jax.compress.analysis import analyse_pruning
from lpaf_jax.data import LESS_IS_BETTER, compare_paired
from lpaf_jax.errors import LpafError, SettingError
from lpaf_jax.files import atomic_write, write_json
from lpaf_jax.inputs import (
    Inputs,
    about_classes,
    about_length,
    about_places,
    about_repeats,
    counts,
    fingerprint,
    hub_names,
    load_inputs,
)
from lpaf_jax.kinds import Judged
from lpaf_jax.linalg import rank_for_ratio
from lpaf_jax.machine import peak_memory, usable_cpus, versions
from lpaf_jax.models import (
    as_function,
    compressible,
    count_parameters,
    load_model,
    parameters,
    save_model,
)
from lpaf_jax.models.latency import compare_latency
from lpaf_jax.processes import is_first, join, together
from lpaf_jax.progress import Progress
from lpaf_jax.report import model_card, result_text, write_report
from lpaf_jax.report.facts import PHASES
from lpaf_jax.run import STAGE_FIELDS, Run
from lpaf_jax.settings import Settings, as_json, check, make_settings
from lpaf_jax.train import Checkpoints, Stopwatch, predict
from lpaf_jax.trainer import layout_of

_LOG = logging.getLogger("lpaf_jax")
LATENCY_LENGTH = 64
_EVALUATION_BATCH = 32
# Bytes that a run has on disk at most, in sizes of its model: the models of four stages with
# scores and masks, and the checkpoints of both parts of tuning, four of each at a time.
_FOLDER_SIZE = 25


def compress(
    model: Path | str, *, task: Path | str, out: Path | str, **chosen: Any
) -> dict[str, Any]:
    """Compress a pretrained model for a task by low-rank prune-and-factorize.

    Args:
        model: `minilm`, a folder, or a hub id.
        task: a task's name, or the path of a json, csv, tsv, jsonl or parquet file.
        out: folder of the run; an unfinished one is continued.
        chosen: any other field of `lpaf_jax.settings.Settings`.

    Returns:
        what `metrics.json` holds.

    Raises:
        LpafError: something asked for cannot be done; said before any long work starts.
    """
    return run(make_settings(model, task=task, out=out, **chosen))


def run(settings: Settings) -> dict[str, Any]:
    """Do, or finish, the run that `settings` describe; see `compress`."""
    check(settings)
    if settings.distributed:
        join()
    layout_of(settings)  # refuses what these devices cannot do
    job = Run(settings)
    progress = Progress(job.folder, settings.quiet)
    for name in hub_names(settings):  # the hub's client tries for a minute before it gives up
        progress.say(f"looking for {name} at the hub")
    inputs = load_inputs(settings)
    rank = choose_rank(settings, inputs)
    needs = _FOLDER_SIZE * inputs.weight_bytes
    with job.opened(fingerprint(inputs), needs), _told_of_a_full_disk(job), closing(progress):
        metrics = job.finished()
        if metrics is not None:
            job.tidy()
            if not (job.folder / "report.html").is_file():
                write_report(job.folder)
            progress.say(f"{job.folder} is finished; there is nothing left to do")
            return metrics
        progress.say(
            f"recipe {settings.recipe}: {settings.model} on {inputs.task.name} "
            f"({counts(inputs)['train']} training examples), rank {rank} everywhere, "
            f"{_percent(share_of_rank(rank, inputs))} of the compressible weights"
        )
        missed = _share_missed(settings, inputs, rank)
        for told in (missed, about_repeats(inputs), about_length(inputs)):
            if told:
                progress.say(told)
        for amiss in (about_places(inputs), about_classes(settings, inputs)):
            if amiss:
                progress.warn(amiss)
        fine_tune(job, inputs, progress)
        if "prune" not in settings.without:
            prune(job, inputs, progress)
        factorize(job, inputs, progress, rank)
        tune(job, inputs, progress)
        metrics = evaluate(job, inputs, progress, rank)
        finish(job, metrics)
        _LOG.info("finished\n%s", result_text(metrics))
    return metrics


def choose_rank(settings: Settings, inputs: Inputs) -> int:
    """The rank of every factorization, from `rank` or from the ratio `params`."""
    if settings.rank is None:
        assert settings.share is not None
        return rank_for_ratio(inputs.shapes, settings.share)
    largest = min(min(shape) for shape in inputs.shapes)
    if settings.rank > largest:
        raise SettingError(
            ("rank",), f"{settings.rank} is more than {largest}, the smallest side there is"
        )
    return settings.rank


def share_of_rank(rank: int, inputs: Inputs) -> float:
    """`k Σ(m + n) / Σ m n`: what factors of rank k hold, as a share of the matrices' numbers."""
    return rank * sum(map(sum, inputs.shapes)) / sum(m * n for m, n in inputs.shapes)


def _share_missed(settings: Settings, inputs: Inputs, rank: int) -> str | None:
    """What to say where a whole rank is off the share asked for by more than a tenth of it."""
    asked, reached = settings.share, share_of_rank(rank, inputs)
    if asked is None or abs(reached - asked) <= 0.1 * asked:
        return None
    return (
        f"{_percent(asked)} was asked for: ranks are whole numbers, and each takes "
        f"{_percent(share_of_rank(1, inputs))} of the compressible weights, so rank {rank} is the "
        + ("least there is" if reached > asked else "largest within it")
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.01 else f"{100 * share:.2g} %"


def fine_tune(job: Run, inputs: Inputs, progress: Progress) -> None:
    """Stage `dense`: the pretrained model, fine-tuned on the task."""

    def work(checkpoints: Callable[[str], Checkpoints]) -> Saved:
        return stages.finetune(job.settings, inputs, progress, checkpoints("finetune")), None

    _stage(job, inputs, progress, "dense", inputs.source, work)


def prune(job: Run, inputs: Inputs, progress: Progress) -> None:
    """Stage `pruned`: step 1, its scores and masks beside the weights."""

    def work(checkpoints: Callable[[str], Checkpoints]) -> Saved:
        return stages.prune_weights(
            job.settings, inputs, job.stage("dense"), progress, checkpoints("prune")
        )

    _stage(job, inputs, progress, "pruned", job.stage("dense"), work)


def factorize(job: Run, inputs: Inputs, progress: Progress, rank: int) -> None:
    """Stage `factorized`: step 2."""
    source = _factorized_from(job)

    def work(checkpoints: Callable[[str], Checkpoints]) -> Saved:
        return stages.factorize_weights(job.settings, inputs, source, rank), None

    _stage(job, inputs, progress, "factorized", source, work)


def tune(job: Run, inputs: Inputs, progress: Progress) -> None:
    """Stage `final`: step 3; the dense matrices are dropped."""

    def work(checkpoints: Callable[[str], Checkpoints]) -> Saved:
        return stages.tune_factors(
            job.settings,
            inputs,
            _factorized_from(job),
            job.stage("factorized"),
            job.stage("dense"),
            progress,
            checkpoints,
        ), None

    _stage(job, inputs, progress, "final", job.stage("factorized"), work)


def evaluate(job: Run, inputs: Inputs, progress: Progress, rank: int) -> dict[str, Any]:
    """Everything that is reported: test figures of every stage, sizes, latency, times."""
    _announce(job, progress, "evaluate")
    started = time.monotonic()
    names = [n for n in ("dense", "pruned", "factorized", "final") if job.stage(n).is_dir()]
    models = {name: load_model(job.stage(name)) for name in names}
    logits = _logits_of(models, inputs.test, progress)
    results = {name: inputs.test.score(found) for name, found in logits.items()}
    ends = {name: models[name] for name in ("dense", "final")}
    stored = {name: count_parameters(parameters(model)) for name, model in ends.items()}
    progress.say("evaluate      speed of the dense and the final model")
    length = min(LATENCY_LENGTH, inputs.positions)
    latency = compare_latency(ends, length=length)
    if "pruned" in models:
        progress.say("evaluate      ranks of the pruned matrices")
        if is_first():
            found = _analyse(job, models["dense"], models["pruned"])
            write_json(job.folder / "analysis.json", found)
    primary = inputs.terms.metrics[0]
    seconds = job.seconds() | {"evaluate": round(time.monotonic() - started, 2)}
    return {
        "model": job.settings.model,
        "task": inputs.task.name,
        **_nature(inputs),
        "recipe": job.settings.recipe,
        "stages": results,
        **_paired(inputs, logits),
        "retained": None
        if primary in LESS_IS_BETTER
        else _ratio(results["final"][primary], results["dense"][primary]),
        "rank": rank,
        "encoder_params_ratio": stored["final"]["encoder"] / stored["dense"]["encoder"],
        "total_params_ratio": stored["final"]["total"] / stored["dense"]["total"],
        "params": stored,
        "bytes_on_disk": {
            name: (job.stage(name) / "model.safetensors").stat().st_size for name in ends
        },
        "latency_ms": {"length": length, "threads": usable_cpus(), **latency},
        "seconds": seconds | {"total": round(sum(seconds.values()), 2)},
        "peak_memory_bytes": peak_memory(),
        "data": counts(inputs),
        "settings": as_json(job.settings),
        "versions": versions(),
        "seed": job.settings.seed,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def finish(job: Run, metrics: dict[str, Any]) -> None:
    """Write the card, the figures and the page, and clear what only an unfinished run needs."""
    if is_first():
        with atomic_write(job.stage("final") / "README.md") as temporary:
            temporary.write_text(model_card(metrics), encoding="utf-8")
        write_json(job.folder / "metrics.json", metrics)
        write_report(job.folder)
    # Last: a run killed before its metrics are written still needs its stages.
    job.tidy()


def _logits_of(
    models: dict[str, nnx.Module], data: Judged, progress: Progress
) -> dict[str, np.ndarray]:
    """Logits of every model, reduced; models of one structure share what is compiled."""
    compiled: dict[frozenset[tuple[str, tuple[int, ...]]], Any] = {}
    found = {}
    for name, model in models.items():
        params = parameters(model)
        structure = frozenset((path, x.shape) for path, x in params.items())
        forward = compiled.setdefault(structure, jax.jit(data.judging(as_function(model))))
        on_batch = partial(progress.batch, f"{name} model on the test split")
        found[name] = predict(forward, params, data, _EVALUATION_BATCH, on_batch)
    return found


Saved = tuple[nnx.Module, dict[str, Any] | None]


def _stage(
    job: Run,
    inputs: Inputs,
    progress: Progress,
    name: str,
    source: Path,
    work: Callable[[Callable[[str], Checkpoints]], Saved],
) -> None:
    """Run one stage unless it is finished, save its model and clear its checkpoints."""
    done = job.is_done(name)
    together(f"begin {name}")  # all have looked before the first one writes
    if done:
        return
    _announce(job, progress, name)
    if job.settings.reuse is not None and name in STAGE_FIELDS:
        reason = job.take_over(name)
        together(f"take over {name}")
        if reason is None:
            progress.say(f"{name:<13} taken over from {job.settings.reuse}")
            return
        progress.say(f"{name:<13} not taken over: {reason}")
    opened: list[Checkpoints] = []
    stopwatch = Stopwatch()
    stands_for = {
        "seed": job.settings.seed,
        "batch": job.settings.batch,
        "examples": len(inputs.train),
    }

    def checkpoints(part: str) -> Checkpoints:
        opened.append(
            Checkpoints(
                job.checkpoint(part),
                stands_for=stands_for,
                stopwatch=stopwatch,
                warn=progress.warn,
            )
        )
        return opened[-1]

    model, extra = work(checkpoints)
    seconds = stopwatch.seconds()
    card = model_card(
        {"model": job.settings.model, "task": inputs.task.name, "stage": name}
        | _nature(inputs)
        | {"settings": as_json(job.settings)}
    )
    if is_first():
        job.note_seconds(name, seconds)
        save_model(
            model,
            job.stage(name),
            source=source,
            label_names=inputs.kind.outputs(inputs.terms),
            card=card,
            reads=inputs.terms.saved(),
            extra=extra,
        )
    together(f"saved {name}")
    for each in opened:
        each.remove()
    # The steps of this stage are compiled code and memory that no later stage uses.
    jax.clear_caches()
    gc.collect()
    progress.say(f"{name:<13} done in {seconds:.0f} s")


def _announce(job: Run, progress: Progress, name: str) -> None:
    """Say how far the run is: `stage 2 of 5: pruning`."""
    names = ["dense", "pruned", "factorized", "final", "evaluate"]
    if "prune" in job.settings.without:
        names.remove("pruned")
    progress.say(f"stage {names.index(name) + 1} of {len(names)}: {PHASES[name].lower()}")


@contextmanager
def _told_of_a_full_disk(job: Run) -> Iterator[None]:
    """What the whole-file writers do not see: logs and in-stage checkpoints."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise LpafError(f"cannot write {job.folder}: {error.strerror}") from error


def _nature(inputs: Inputs) -> dict[str, Any]:
    """What the words of a report hang on."""
    return {
        "kind": inputs.terms.kind,
        "family": inputs.family,
        "metrics": list(inputs.terms.metrics),
    }


def _paired(inputs: Inputs, logits: dict[str, np.ndarray]) -> dict[str, Any]:
    """The comparison of two models example by example, where answers are right or wrong."""
    right = inputs.test.right
    if right is None:
        return {}
    return {"paired": compare_paired(right(logits["dense"]), right(logits["final"]))}


def _ratio(part: float, whole: float) -> float | None:
    """None where there is nothing that could be kept; a correlation may be negative."""
    return part / whole if whole > 0 else None


def _factorized_from(job: Run) -> Path:
    return job.stage("dense" if "prune" in job.settings.without else "pruned")


def _analyse(job: Run, dense: nnx.Module, pruned: nnx.Module) -> dict[str, Any]:
    _, kept = stages.pruning_arrays(job.stage("pruned"))
    return analyse_pruning(compressible(parameters(dense)), compressible(parameters(pruned)), kept)
