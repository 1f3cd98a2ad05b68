"""What every training stage of a run does alike: its optimiser, its devices, its way to the end."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lpaf_jax.errors import SettingError
from lpaf_jax.kinds import Judged
from lpaf_jax.models import as_function, parameters
from lpaf_jax.models.functional import Forward, Params
from lpaf_jax.progress import Progress
from lpaf_jax.settings import Settings
from lpaf_jax.train import (
    Checkpoints,
    Layout,
    Loss,
    Stage,
    TrainState,
    initial_state,
    make_layout,
    make_step,
    predict,
    run_steps,
    warmup_linear,
)

Extras = Callable[[int], dict[str, float]]
_CLIP = 1.0


class Trainer:
    """What all parts of a training stage have in common: settings, devices and where they report.

    Args:
        settings: of the run.
        stage: data and number of steps.
        progress: is told of each logged step.
    """

    def __init__(self, settings: Settings, stage: Stage, progress: Progress):
        self._settings, self._stage, self._progress = settings, stage, progress
        self._begun = False
        self._layout = layout_of(settings)

    def function(self, model: nnx.Module, hidden: bool = False) -> Forward:
        """The model as a function that computes in the dtype of the settings."""
        narrow = None if self._settings.dtype == "float32" else jnp.dtype(self._settings.dtype)
        return as_function(model, hidden=hidden, dtype=narrow)

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
        until: int | None = None,
    ) -> TrainState:
        """Run a stage, or its part up to step `until`, from its last checkpoint."""
        state = checkpoints.restore(self.fresh(params, optimizer))
        return self.go_on(loss, optimizer, state, fixed, checkpoints, extras, until=until)

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
        until = self._stage.steps if until is None else until
        if until > int(state.step):
            # Tuning alone has a second part in one process: with the factors alone.
            self._progress.begin(self._stage.name, int(state.step), alone=self._begun)
            self._begun = True
        step = make_step(loss, optimizer, accumulate=self._settings.accumulate, layout=self._layout)
        return run_steps(
            self._stage,
            step,
            state,
            fixed if self._layout is None else self._layout.place(fixed),
            until=until,
            monitor=self._progress,
            checkpoints=checkpoints,
            extras=extras,
            layout=self._layout,
        )


def layout_of(settings: Settings) -> Layout | None:
    """All devices there are; None for one.

    Raises:
        SettingError: they cannot be cut as the settings say.
    """
    count = jax.device_count()
    if count == 1 and settings.fsdp > 1:
        raise SettingError(("fsdp",), f"is {settings.fsdp}, but there is 1 device: leave it out")
    if count % settings.fsdp:
        raise SettingError(
            ("fsdp",), f"is {settings.fsdp}, which does not divide the {count} devices there are"
        )
    if count == 1:
        return None
    if settings.batch % (count * settings.accumulate):
        raise SettingError(
            ("batch",),
            f"is {settings.batch}: with {count} devices and --accumulate {settings.accumulate} it "
            f"must be a multiple of {count * settings.accumulate}",
        )
    return make_layout(settings.fsdp)


def optimizer_of(
    settings: Settings, peak: float, steps: int
) -> tuple[optax.GradientTransformation, Extras]:
    """AdamW with clipped gradients and a warm-up; decay reaches matrices only."""
    schedule = warmup_linear(peak, steps, round(settings.warmup * steps))
    adamw = optax.adamw(
        schedule,
        weight_decay=settings.weight_decay,
        mask=lambda params: {path: array.ndim > 1 for path, array in params.items()},
    )
    return optax.chain(optax.clip_by_global_norm(_CLIP), adamw), lambda t: {
        "lr": float(schedule(t))
    }


def score_of(
    model: nnx.Module, data: Judged, batch_size: int, layout: Layout | None = None
) -> Callable[[Params], float]:
    """`score(params)` for the structure of `model`: the primary metric of the task on `data`."""
    forward = jax.jit(data.judging(as_function(model)))
    names = set(parameters(model))

    def score(params: Params) -> float:
        chosen = {name: value for name, value in params.items() if name in names}
        found = data.score(predict(forward, chosen, data, batch_size, layout=layout))
        return float(found[found["primary"]])

    return score
