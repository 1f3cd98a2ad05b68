"""The training stages: each takes a model folder and leaves another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpaf_jax.compress import factorize, low_rank_factors, to_low_rank, to_mixed
from lpaf_jax.data import steps_per_epoch, train_batches
from lpaf_jax.heads import put_in_order
from lpaf_jax.importance import first_order_scores
from lpaf_jax.inputs import Inputs, first_model
from lpaf_jax.models import (
    as_function,
    compressible,
    is_compressible,
    load_extra,
    load_model,
    masks,
    mixed_paths,
    parameters,
    set_parameters,
)
from lpaf_jax.models.functional import Params
from lpaf_jax.processes import on_host
from lpaf_jax.progress import Progress
from lpaf_jax.settings import Settings
from lpaf_jax.train import (
    Checkpoints,
    Loss,
    Objective,
    Stage,
    TrainState,
    cubic_sparsity,
    distilled,
    dual_loss,
    linear_replacement,
    prune,
    task_loss,
    teacher_parameters,
    with_teacher,
)
from lpaf_jax.trainer import Trainer, layout_of, optimizer_of, score_of

# Where the scores and masks of a pruned model lie among the arrays beside its weights.
_SCORE, _MASK = "score.", "mask."


def finetune(
    settings: Settings, inputs: Inputs, progress: Progress, checkpoints: Checkpoints
) -> nnx.Module:
    """Fine-tune the pretrained model on the task, or take it as it is after no epoch of that."""
    model: nnx.Module = first_model(inputs.source, settings, inputs.kind, inputs.terms)
    put_in_order(model, inputs.order)
    if settings.finetune_epochs == 0:
        return model
    stage = _stage("finetune", settings, inputs, settings.finetune_epochs, model)
    optimizer, rate = optimizer_of(settings, settings.finetune_lr, stage.steps)
    trainer = Trainer(settings, stage, progress)
    loss = task_loss(trainer.function(model), inputs.kind.objective)
    state = trainer.run(loss, optimizer, parameters(model), {}, checkpoints, rate)
    set_parameters(model, on_host(state.params))
    return model


def prune_weights(
    settings: Settings, inputs: Inputs, dense: Path, progress: Progress, checkpoints: Checkpoints
) -> tuple[nnx.Module, dict[str, np.ndarray]]:
    """Step 1, `UP_first`: train on while keeping the top share of weights.

    Returns:
        the pruned model, and its scores and masks as arrays to keep beside its weights.
    """
    model = load_model(dense)
    stage = _stage("prune", settings, inputs, settings.prune_epochs, model)
    inner, rate = optimizer_of(settings, settings.prune_lr, stage.steps)
    kept = cubic_sparsity(
        stage.steps,
        start=round(settings.warmup * stage.steps),
        cooldown=round(settings.cooldown * stage.steps),
        final=settings.kept,
    )
    optimizer = prune(
        inner,
        kept,
        lambda params: {path: is_compressible(path) for path in params},
        criterion=settings.criterion,
        scope=settings.scope,
        mask_every=settings.mask_every,
        decay=settings.score_decay,
    )
    trainer = Trainer(settings, stage, progress)
    state = trainer.run(
        task_loss(trainer.function(model), inputs.kind.objective),
        optimizer,
        parameters(model),
        {},
        checkpoints,
        lambda t: rate(t) | {"sparsity": 1.0 - float(kept(t))},
    )
    set_parameters(model, on_host(state.params))
    paths = list(compressible(state.params))
    extra = on_host({_SCORE + p: state.opt_state.scores[p] for p in paths})
    extra |= on_host({_MASK + p: state.opt_state.masks[p] for p in paths})
    return model, extra


def pruning_arrays(folder: Path) -> tuple[Params, Params]:
    """Scores and masks by kernel path, as left beside a pruned model."""
    extra = load_extra(folder)
    scores = {k.removeprefix(_SCORE): jnp.asarray(v) for k, v in extra.items() if _SCORE in k[:6]}
    kept = {k.removeprefix(_MASK): jnp.asarray(v) for k, v in extra.items() if _MASK in k[:5]}
    return scores, kept


def factorize_weights(settings: Settings, inputs: Inputs, source: Path, rank: int) -> nnx.Module:
    """Step 2: every compressible matrix to rank `rank`, weighted by the pruning scores.

    Where step 1 was left out there are no scores from training; they are then summed over one
    epoch of batches at the fine-tuned weights, and nothing is masked.
    """
    model = load_model(source)
    params = parameters(model)
    weights = compressible(params)
    plain = "weighting" in settings.without
    solver, kind = ("none", "none") if plain else (settings.solver, settings.importance)
    scores, kept = pruning_arrays(source)
    if not kept:
        kept = {path: jnp.ones(w.shape, bool) for path, w in weights.items()}
        scores = {path: jnp.zeros_like(w) for path, w in weights.items()}
        if kind == "score":
            scores = first_order_scores(
                as_function(model),
                params,
                train_batches(inputs.train, settings.batch, seed=settings.seed, epoch=0),
                inputs.kind.objective.loss,
                "sensitivity" if settings.criterion == "magnitude" else settings.criterion,
            )
    factors = factorize(weights, scores, kept, rank, solver=solver, kind=kind, floor=settings.floor)
    to_low_rank(model, factors)
    return model


def tune_factors(
    settings: Settings,
    inputs: Inputs,
    dense: Path,
    factorized: Path,
    teacher: Path,
    progress: Progress,
    checkpoints: Callable[[str], Checkpoints],
) -> nnx.Module:
    """Step 3: mixed-rank fine-tuning with dual-forward consistency, or plain fine-tuning.

    Args:
        dense: folder of the model that was factorized, whose (masked) weights are mixed in.
        factorized: folder of the factorized model.
        teacher: folder of the fine-tuned model, for distillation.
        checkpoints: by the name of a part of this stage.
    """
    final = load_model(factorized)
    stage = _stage("tune", settings, inputs, settings.tune_epochs, final)
    optimizer, rate = optimizer_of(settings, settings.tune_lr, stage.steps)
    trainer = Trainer(settings, stage, progress)
    taught, objective, fixed = _distillation(settings, inputs, trainer, teacher)
    hidden = settings.distil_hidden > 0
    if "mixing" in settings.without:
        loss = taught(task_loss(trainer.function(final, hidden), objective))
        state = trainer.run(loss, optimizer, parameters(final), fixed, checkpoints("tune"), rate)
        set_parameters(final, on_host(state.params))
        return final

    def loss_of(model: nnx.Module) -> Loss:
        forward, layers = trainer.function(model, hidden), len(mixed_paths(model))
        return taught(dual_loss(forward, probability, layers, settings.consistency, objective))

    mixed_steps = min(stage.steps, round(settings.p_end * stage.steps))
    probability = linear_replacement(mixed_steps, settings.p_init)
    after = checkpoints("tune-factors")
    start = after.restore(trainer.fresh(parameters(final), optimizer))
    if mixed_steps > 0 and int(start.step) == 0:
        mixed, before = _mixed_model(dense, final), checkpoints("tune-mixed")
        # Validation looks at what will remain: the factors alone.
        state = trainer.run(
            loss_of(mixed),
            optimizer,
            parameters(mixed),
            fixed | masks(mixed),
            before,
            rate,
            until=mixed_steps,
        )
        start = _keep_parameters(state, list(parameters(final)))
        after.save_if_due(start, now=True)
    state = trainer.go_on(loss_of(final), optimizer, start, fixed, after, rate)
    set_parameters(final, on_host(state.params))
    return final


def _distillation(
    settings: Settings, inputs: Inputs, trainer: Trainer, teacher: Path
) -> tuple[Callable[[Loss], Loss], Objective, Params]:
    """A wrapper, an objective and parameters that make a loss learn from the model in `teacher`.

    With no weight on it they change nothing.
    """
    if settings.distil == 0 and settings.distil_hidden == 0:
        return lambda loss: loss, inputs.kind.objective, {}
    model = load_model(teacher)
    forward = trainer.function(model, settings.distil_hidden > 0)
    objective = distilled(
        inputs.kind.objective,
        settings.distil,
        temperature=settings.temperature,
        hidden=settings.distil_hidden,
    )
    fixed = teacher_parameters(parameters(model))
    return lambda loss: with_teacher(loss, forward), objective, fixed


def _mixed_model(dense: Path, final: nnx.Module) -> nnx.Module:
    """The dense model with mixed layers in place of those that `final` holds as factors."""
    model = load_model(dense)
    to_mixed(model, low_rank_factors(final), pruning_arrays(dense)[1])
    return model


def _keep_parameters(state: TrainState, names: list[str]) -> TrainState:
    """The state of a model that keeps the parameters `names` only, moments included."""
    full = set(state.params)

    def is_params(x: Any) -> bool:
        return isinstance(x, dict) and set(x) == full

    def keep(x: Any) -> Any:
        return {name: x[name] for name in names} if is_params(x) else x

    return jax.tree.map(keep, state, is_leaf=is_params)


def _stage(
    name: str, settings: Settings, inputs: Inputs, epochs: float, model: nnx.Module
) -> Stage:
    per_epoch = steps_per_epoch(len(inputs.train), settings.batch)
    validate = score_of(model, inputs.validation, settings.batch, layout_of(settings))
    steps, seed = max(1, round(epochs * per_epoch)), _seed_of(name, settings)
    metric = inputs.terms.metrics[0]
    return Stage(name, inputs.train, settings.batch, steps, seed, validate, metric)


def _seed_of(stage: str, settings: Settings) -> int:
    """A seed for each stage: with one for all, stages of half an epoch would see the same half."""
    number = ("finetune", "prune", "tune").index(stage)
    return int(np.random.default_rng([settings.seed, number]).integers(2**31))
