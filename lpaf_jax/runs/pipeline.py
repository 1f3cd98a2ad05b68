"""A run, top to bottom: the stages of its recipe one after the other, then what is reported."""

import base64
import datetime
import gc
import logging
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lpaf_jax.checkpoints import load_model, records_of, save_model
from lpaf_jax.core.files import write_json
from lpaf_jax.core.machine import forget_peak_memory, peak_memory, usable_cpus, versions
from lpaf_jax.core.processes import barrier, is_first, join
from lpaf_jax.core.progress import Progress
from lpaf_jax.data import LESS_IS_BETTER, compare_paired
from lpaf_jax.evaluation.latency import compare_latency
from lpaf_jax.factorization.analysis import analyse_pruning
from lpaf_jax.factors import KINDS
from lpaf_jax.models import compressible, count_parameters, parameters
from lpaf_jax.recipes import Recipe
from lpaf_jax.recipes.base import FINAL
from lpaf_jax.report import model_card, result_text
from lpaf_jax.runs.answers import (
    NF4,
    NF4_SAVED,
    TEST,
    VALIDATION,
    Examiner,
    keep_answers,
    read_answers,
)
from lpaf_jax.runs.outcome import describe, finish, finished, full_disk_explained
from lpaf_jax.runs.run import Run
from lpaf_jax.runs.settings import Settings, as_json, check, command, make_settings
from lpaf_jax.runs.texts import run_text
from lpaf_jax.runs.training import run_stage
from lpaf_jax.stages import Prune
from lpaf_jax.stages.base import Place
from lpaf_jax.stages.prune import pruning_arrays
from lpaf_jax.stages.trainer import layout_of
from lpaf_jax.tasks.inputs import (
    Inputs,
    classes_note,
    counts,
    fingerprint,
    hub_names,
    length_note,
    load_inputs,
    misplaced_note,
    repeats_note,
)

_LOG = logging.getLogger("lpaf_jax")
LATENCY_LENGTH = 64
# Bytes that a run has on disk at most, in sizes of its model: the models of four stages with
# scores, masks and moments, and the checkpoints of both parts of tuning, four of each at a time.
_FOLDER_SIZE = 26


def compress(
    model: Path | str,
    *,
    out: Path | str,
    task: Path | str | None = None,
    recipe: str | Recipe | None = None,
    **chosen: Any,
) -> dict[str, Any]:
    """Compress a pretrained model by a recipe, for a task or by a text alone.

    Args:
        model: `minilm`, `smollm2`, a folder, a .gguf file, or a hub id.
        out: folder of the run; an unfinished one is continued.
        task: a task's name, or the path of a json, csv, tsv, jsonl or parquet file; None where
            nothing is to be trained, and `calibration` names a text.
        recipe: a `Recipe`, or what `lpaf compress --recipe` takes; lpaf unless given, channels
            without a task.
        chosen: fields of `lpaf_jax.tasks.options.Options`, and settings of the stages of the
        recipe.

    Returns:
        what `metrics.json` holds.

    Raises:
        LpafError: something asked for cannot be done; said before any long work starts.
    """
    return run(make_settings(model, task=task, out=out, recipe=recipe, **chosen))


def run(settings: Settings) -> dict[str, Any]:
    """Do, or finish, the run that `settings` describe; see `compress`."""
    check(settings)
    if not settings.trained:
        return run_text(settings)
    if settings.distributed:
        join()
    layout_of(settings.training)  # refuses what these devices cannot do
    job = Run(settings)
    progress = Progress(job.folder, settings.quiet)
    for name in hub_names(settings):  # the hub's client tries for a minute before it gives up
        progress.say(f"looking for {name} on the hub")
    inputs = load_inputs(settings)
    for _, stage in settings.steps:
        stage.check_inputs(inputs)
    needs = _FOLDER_SIZE * inputs.weight_bytes
    with job.opened(fingerprint(inputs), needs), full_disk_explained(job), closing(progress):
        metrics = finished(job, progress)
        if metrics is not None:
            return metrics
        progress.say(
            f"recipe {settings.method.name}: {settings.model} on {inputs.task.name} "
            f"({counts(inputs)['train']} training examples), {settings.smaller.plan(inputs)}"
        )
        missed = settings.smaller.missed(inputs)
        for note in (missed, repeats_note(inputs), length_note(inputs)):
            if note:
                progress.say(note)
        for amiss in (misplaced_note(inputs), classes_note(settings.model, inputs)):
            if amiss:
                progress.warn(amiss)
        for name, _ in settings.steps:
            do_step(job, inputs, progress, name)
        metrics = evaluate(job, inputs, progress)
        finish(job, metrics)
        _LOG.info("finished\n%s", result_text(metrics))
    return metrics


def evaluate(job: Run, inputs: Inputs, progress: Progress) -> dict[str, Any]:
    """Everything that is reported: test figures of every stage, sizes, latency, times."""
    _announce(job, progress, "evaluate")
    started = time.monotonic()
    names = [name for name, _ in job.settings.steps]
    first = names[0]
    models = {name: load_model(job.stage(name)) for name in names}
    answers = _answers(job, models, inputs, progress)
    logits = {name: found[TEST] for name, found in answers.items()}
    results = {name: inputs.test.score(found) for name, found in logits.items()}
    ends = {"dense": models[first], FINAL: models[FINAL]}
    stored = {name: count_parameters(parameters(model)) for name, model in ends.items()}
    sizes = {
        name: (job.stage(place) / "model.safetensors").stat().st_size
        for name, place in (("dense", first), (FINAL, FINAL))
    }
    at_ends = {"dense": answers[first], FINAL: answers[FINAL]}
    rounded = _rounded(at_ends, sizes, inputs) if job.settings.nf4 else {}
    progress.say("evaluate      speed of the dense and the final model at batch 1 and 32")
    progress.close()  # a bar that is drawn meanwhile would be timed, too
    length = min(LATENCY_LENGTH, inputs.positions)
    latency = compare_latency(ends, length=length)
    _analyse(job, models, progress)
    primary = inputs.spec.metrics[0]
    seconds = job.seconds() | {"evaluate": round(time.monotonic() - started, 2)}
    ranks = ranks_of(models[FINAL])
    return {
        "model": job.settings.model,
        "task": inputs.task.name,
        **_nature(inputs),
        "recipe": job.settings.method.name,
        "about": job.settings.method.summary,
        "stages": results,
        "described": describe(job.settings, primary, ranks),
        "validation": _validation(inputs, answers, first),
        **_paired(inputs, logits, first),
        "retained": None
        if primary in LESS_IS_BETTER
        else _ratio(results[FINAL][primary], results[first][primary]),
        "rank": next(iter(ranks.values())) if len(set(ranks.values())) == 1 else None,
        "ranks": ranks,
        "ordinary": not records_of(models[FINAL]),
        "encoder_params_ratio": stored[FINAL]["encoder"] / stored["dense"]["encoder"],
        "total_params_ratio": stored[FINAL]["total"] / stored["dense"]["total"],
        "params": stored,
        "bytes_on_disk": sizes,
        **rounded,
        "latency_ms": {"length": length, "threads": usable_cpus(), **latency},
        "seconds": seconds | {"total": round(sum(seconds.values()), 2)},
        # Of the work, and not of this evaluation, which holds all models at once.
        "peak_memory_bytes": max(job.memory().values(), default=None),
        "data": counts(inputs),
        "command": command(job.settings),
        "settings": as_json(job.settings),
        "versions": versions(),
        "seed": job.settings.seed,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def ranks_of(model: nnx.Module) -> dict[str, int]:
    """The rank of every factorized matrix, by path; token embeddings are none."""
    return {
        path: record["rank"]
        for path, record in records_of(model).items()
        if "rank" in record and KINDS[record["kind"]].replaces == "kernel"
    }


def _answers(
    job: Run, models: Mapping[str, nnx.Module], inputs: Inputs, progress: Progress
) -> dict[str, dict[str, np.ndarray]]:
    """Answers of every model of the run.

    Those of a stage that other runs may take over are kept beside it.
    """
    examiner, first = Examiner(inputs, progress), next(iter(models))
    of_ends = {TEST, VALIDATION} | ({NF4} if job.settings.nf4 else set())
    found = {}
    for name, model in models.items():
        stage, lent = job.stage(name), name != FINAL
        have = read_answers(stage) if lent else {}
        parts = of_ends if name in (first, FINAL) else {TEST}
        found[name] = examiner.answers(name, model, parts, have)
        if lent and found[name].keys() != have.keys():
            keep_answers(stage, found[name])
    return found


def _rounded(
    answers: Mapping[str, Mapping[str, np.ndarray]], sizes: Mapping[str, int], inputs: Inputs
) -> dict[str, Any]:
    """What both ends of the run are worth, and take, in four bits."""
    found = {}
    for name, of in answers.items():
        score = inputs.test.score(of[NF4])
        size = sizes[name] - int(of[NF4_SAVED])
        found[name] = {"score": score[score["primary"]], "bytes": size}
    return {"nf4": found}


def do_step(job: Run, inputs: Inputs, progress: Progress, name: str) -> None:
    """Run one step unless it is finished, save its model and clear its checkpoints."""
    done = job.is_done(name)
    barrier(f"begin {name}")  # all have looked before the first one writes
    if done:
        return
    _announce(job, progress, name)
    if job.settings.reuse and name != FINAL:
        reason = job.take_over(name)
        barrier(f"take over {name}")
        if reason is None:
            progress.say(f"{name:<13} reused from another run")
            return
        progress.say(f"{name:<13} not reused: {reason}")
    forget_peak_memory()
    steps = job.settings.steps
    index = [step for step, _ in steps].index(name)
    before = tuple(Place(job.stage(step), stage) for step, stage in steps[:index])
    training = job.settings.training
    (model, extra), seconds, opened = run_stage(
        job, steps, name, inputs, training, progress, before
    )
    if is_first():
        job.note_memory(name, peak_memory())
        job.note_seconds(name, seconds)
        save_model(
            model,
            job.stage(name),
            source=before[-1].folder if before else inputs.source,
            label_names=inputs.kind.outputs(inputs.spec),
            card=_card(job.settings, inputs, name, model),
            reads=inputs.spec.saved(),
            extra=extra,
        )
    barrier(f"saved {name}")
    for each in opened:
        each.remove()
    # The steps of this stage are compiled code and memory that no later stage uses.
    jax.clear_caches()
    gc.collect()
    progress.close()
    progress.say(f"{name:<13} done in {seconds:.0f} s")


def _card(settings: Settings, inputs: Inputs, name: str, model: nnx.Module) -> str:
    """The card of a model whose figures are not known yet."""
    described = describe(settings, inputs.spec.metrics[0], ranks_of(model))
    ordinary = described[name]["shrinks"] and not records_of(model)
    return model_card(
        {"model": settings.model, "task": inputs.task.name, "stage": name, "ordinary": ordinary}
        | _nature(inputs)
        | {"settings": as_json(settings), "recipe": settings.method.name, "described": described}
    )


def _announce(job: Run, progress: Progress, name: str) -> None:
    """Say how far the run is: `stage 2 of 5: pruning`."""
    steps = dict(job.settings.steps)
    names = [*steps, "evaluate"]
    factors = job.settings.smaller.factors
    found = {"metric": "", "ranks": {}, "retrained": False, "factors": factors}
    phase = "evaluating" if name == "evaluate" else steps[name].describe(found).phase.lower()
    progress.say(f"stage {names.index(name) + 1} of {len(names)}: {phase}")
    progress.busy(phase)


def _nature(inputs: Inputs) -> dict[str, Any]:
    """What the words of a report hang on."""
    return {
        "kind": inputs.spec.kind,
        "family": inputs.family,
        "metrics": list(inputs.spec.metrics),
    }


def _validation(
    inputs: Inputs, answers: Mapping[str, Mapping[str, np.ndarray]], first: str
) -> dict[str, Any]:
    """What a choice between recipes may hang on: the test split is there to be looked at once.

    `divergence` is how far the final model's answers are from the dense one's, a finer measure than
    how many of them are right.
    """
    held, primary = inputs.validation, inputs.spec.metrics[0]
    ends = {"dense": answers[first][VALIDATION], FINAL: answers[FINAL][VALIDATION]}
    found: dict[str, Any] = {name: held.score(each)[primary] for name, each in ends.items()}
    return found | {"divergence": held.divergence and held.divergence(*ends.values())}


def _paired(inputs: Inputs, logits: dict[str, np.ndarray], first: str) -> dict[str, Any]:
    """The comparison of two models example by example, where answers are right or wrong.

    `right` holds for both ends of the run which test examples each has right, as packed bits.
    """
    right = inputs.test.right
    if right is None:
        return {}
    ends = {"dense": right(logits[first]), FINAL: right(logits[FINAL])}
    packed = {
        name: base64.b64encode(np.packbits(found).tobytes()).decode()
        for name, found in ends.items()
    }
    return {"paired": compare_paired(*ends.values()), "right": packed}


def _ratio(part: float, whole: float) -> float | None:
    """None where there is nothing that could be kept; a correlation may be negative."""
    return part / whole if whole > 0 else None


def _analyse(job: Run, models: Mapping[str, nnx.Module], progress: Progress) -> None:
    """Write what pruning did to the ranks of the matrices, where the recipe prunes."""
    steps = job.settings.steps
    pruned = [name for name, stage in steps if isinstance(stage, Prune)]
    if not pruned:
        return
    progress.say("evaluate      ranks of the pruned matrices")
    progress.busy("ranks of the pruned matrices")
    if is_first():
        masks = pruning_arrays(job.stage(pruned[0])).masks
        before, after = (compressible(parameters(models[n])) for n in (steps[0][0], pruned[0]))
        write_json(job.folder / "analysis.json", analyse_pruning(before, after, masks))
