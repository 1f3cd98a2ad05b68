"""What every training stage of a run does alike: its optimiser, its devices, its way to the end."""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lpaf_jax.core.errors import SettingError
from lpaf_jax.core.progress import Progress
from lpaf_jax.data import Encoded, steps_per_epoch
from lpaf_jax.models import as_function, fixed_arrays, parameters
from lpaf_jax.models.functional import Forward, Params
from lpaf_jax.tasks.inputs import Inputs
from lpaf_jax.tasks.kinds import EvalSet
from lpaf_jax.tasks.options import Training
from lpaf_jax.train import (
    Checkpoints,
    Layout,
    Loop,
    Loss,
    Step,
    TrainState,
    initial_state,
    make_layout,
    make_step,
    predict,
    run_steps,
    warmup_linear,
)

Extras = Callable[[int], dict[str, float]]
OnBatch = Callable[[int, int], None]
_CLIP = 1.0
_NUMBERED = ("finetune", "prune", "tune")


class Trainer:
    """What all parts of a training stage have in common: options, devices and where they report.

    Args:
        training: what the stages of the run have in common.
        loop: data and number of steps.
        progress: is told of each logged step.
    """

    def __init__(self, training: Training, loop: Loop, progress: Progress):
        self._training, self._loop, self._progress = training, loop, progress
        self._made: dict[tuple[Loss, optax.GradientTransformation], Step] = {}
        self._layout = layout_of(training)

    def function(self, model: nnx.Module, *, hidden: bool = False, maps: bool = False) -> Forward:
        """The model as a function that computes in the dtype of the training."""
        narrow = None if self._training.dtype == "float32" else jnp.dtype(self._training.dtype)
        return as_function(model, hidden=hidden, maps=maps, dtype=narrow)

    def fresh(self, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
        """The state before the first step."""
        return initial_state(params, optimizer, self._layout)

    def run(
        self,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        params: Params,
        fixed: Params,
        checkpoints: Checkpoints,
        extras: Extras,
        *,
        begun: int = 0,
        until: int | None = None,
    ) -> TrainState:
        """Run a stage, or its part from step `begun` up to `until`, from its last checkpoint.

        The optimiser and `extras` count from the beginning of the part.
        """
        state = self.fresh(params, optimizer)
        state = checkpoints.restore(state._replace(step=jnp.full_like(state.step, begun)))

        def of_part(step: int) -> dict[str, float]:
            return extras(step - begun)

        return self.go_on(loss, optimizer, state, fixed, checkpoints, of_part, until=until)

    def go_on(
        self,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        state: TrainState,
        fixed: Params,
        checkpoints: Checkpoints,
        extras: Extras,
        *,
        until: int | None = None,
    ) -> TrainState:
        """Run a stage, or its part up to step `until`, on from `state`."""
        until = self._loop.steps if until is None else until
        known = (loss, optimizer) in self._made  # parts that have both in common compile once
        if until > int(state.step) and not known:
            # Tuning alone has another step in one process: with the factors alone.
            self._progress.begin(self._loop.name, int(state.step), alone=bool(self._made))
        if not known:
            self._made[loss, optimizer] = make_step(
                loss, optimizer, accumulate=self._training.accumulate, layout=self._layout
            )
        return run_steps(
            self._loop,
            self._made[loss, optimizer],
            state,
            fixed if self._layout is None else self._layout.place(fixed),
            until=until,
            monitor=self._progress,
            checkpoints=checkpoints,
            extras=extras,
            layout=self._layout,
        )


def layout_of(training: Training) -> Layout | None:
    """All devices there are; None for one.

    Raises:
        SettingError: they cannot be cut as the settings say.
    """
    count = jax.device_count()
    if count == 1 and training.fsdp > 1:
        raise SettingError(
            ("fsdp",), f"is {training.fsdp}, but there is only 1 device: leave it out"
        )
    if count % training.fsdp:
        raise SettingError(
            ("fsdp",), f"is {training.fsdp}, which does not divide the number of devices, {count}"
        )
    if count == 1:
        return None
    if training.batch % (count * training.accumulate):
        raise SettingError(
            ("batch",),
            f"is {training.batch}: with {count} devices and --accumulate {training.accumulate} it "
            f"must be a multiple of {count * training.accumulate}",
        )
    return make_layout(training.fsdp)


def optimizer_of(
    training: Training, peak: float, steps: int
) -> tuple[optax.GradientTransformation, Extras]:
    """AdamW with clipped gradients and a warm-up; decay reaches matrices only."""
    schedule = warmup_linear(peak, steps, round(training.warmup * steps))
    adamw = optax.adamw(
        schedule,
        weight_decay=training.weight_decay,
        mask=lambda params: {path: array.ndim > 1 for path, array in params.items()},
    )
    return optax.chain(optax.clip_by_global_norm(_CLIP), adamw), lambda t: {
        "lr": float(schedule(t))
    }


def score_of(
    model: nnx.Module,
    data: EvalSet,
    batch_size: int,
    layout: Layout | None = None,
    on_batch: OnBatch = lambda done, count: None,
) -> Callable[[Params], float]:
    """`score(params)` for the structure of `model`: the primary metric of the task on `data`.

    Where the model has arrays that are not trained, they are among the parameters given.
    """
    forward = jax.jit(data.judging(as_function(model)))
    names, held = set(parameters(model)), set(fixed_arrays(model))

    def score(params: Params) -> float:
        chosen, fixed = ({n: x for n, x in params.items() if n in of} for of in (names, held))
        predicted = predict(forward, chosen, data, batch_size, on_batch, layout, fixed)
        found = data.score(predicted)
        return float(found[found["primary"]])

    return score


def loop_of(
    name: str,
    training: Training,
    inputs: Inputs,
    epochs: float,
    model: nnx.Module,
    data: Encoded | None = None,
    on_batch: OnBatch = lambda done, count: None,
) -> Loop:
    """What does not change while a training stage of that many epochs runs.

    Args:
        data: what is trained on; None is the training split.
        on_batch: of each validation is called after each batch.
    """
    data = inputs.train if data is None else data
    per_epoch = steps_per_epoch(len(data), training.batch)
    layout = layout_of(training)
    validate = score_of(model, inputs.validation, training.batch, layout, on_batch)
    steps, seed = max(1, round(epochs * per_epoch)), _seed_of(name, training.seed)
    metric = inputs.spec.metrics[0]
    return Loop(name, data, training.batch, steps, seed, validate, metric)


def _seed_of(stage: str, seed: int) -> int:
    """A seed for each stage: with one for all, stages of half an epoch would see the same half."""
    number = _NUMBERED.index(stage) if stage in _NUMBERED else zlib.crc32(stage.encode())
    return int(np.random.default_rng([seed, number]).integers(2**31))
