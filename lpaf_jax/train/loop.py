"""The loop around a step: data position, log rows, validation, checkpoints."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.core.errors import LpafError, Terminated
from lpaf_jax.core.processes import on_host
from lpaf_jax.data import (
    LESS_IS_BETTER,
    Batch,
    Encoded,
    eval_batches,
    steps_per_epoch,
    train_batches,
)
from lpaf_jax.models.functional import Forward, Params
from lpaf_jax.train.checkpoints import Checkpoints
from lpaf_jax.train.interrupt import until_terminated
from lpaf_jax.train.layout import Layout
from lpaf_jax.train.pace import Pace
from lpaf_jax.train.steps import Step, TrainState

LOG_EVERY = 10


class Monitor(Protocol):
    """Who is told how a stage goes: `row` for each logged step or validation."""

    def row(self, row: dict[str, Any]) -> None: ...


class Loop(NamedTuple):
    """What does not change while a stage runs.

    Attributes:
        name: for log rows and messages.
        data: encoded training examples.
        batch_size: examples a step.
        steps: of the whole stage; may end inside an epoch.
        seed: of batches, draws and dropout.
        validate: how good given parameters are on the validation examples; more is better but for
            a metric of `LESS_IS_BETTER`. It is given those that are not trained, too.
        metric: what `validate` measures; it is logged as `validation_<metric>`.
    """

    name: str
    data: Encoded
    batch_size: int
    steps: int
    seed: int
    validate: Callable[[Params], float]
    metric: str = "accuracy"

    def goodness(self, value: float) -> float:
        """A value of `validate` so that more is better."""
        return -value if self.metric in LESS_IS_BETTER else value


def run_steps(
    stage: Loop,
    step: Step,
    state: TrainState,
    fixed: Params,
    *,
    until: int,
    monitor: Monitor,
    checkpoints: Checkpoints,
    extras: Callable[[int], dict[str, float]] = lambda _: {},
    layout: Layout | None = None,
) -> TrainState:
    """Run `step` from where `state` stands up to step `until`.

    The batches and the randomness of step t depend on the seed and t alone, so a state restored
    from a checkpoint meets what it would have met.

    Args:
        until: last step of this part, at most `stage.steps`.
        checkpoints: closed at the end: what was saved is on disk.
        extras: scheduled quantities to log beside the loss, by step.
        layout: of the devices that `step` and `state` were made for.

    Raises:
        LpafError: a checkpoint cannot be written; or the loss or a gradient is NaN or infinite,
            and the last good state is on disk; or a weight is, and the last checkpoint is.
        Terminated: SIGTERM came; the state after the last step sent off is on disk. Up to
            `LOG_EVERY` steps are under way together, and a validation that has begun is finished;
            one that is due is left out, now and after the restart.
    """
    key = jax.random.key(stage.seed)
    done = int(state.step)
    per_epoch = steps_per_epoch(len(stage.data), stage.batch_size)
    pace = Pace()
    compiled: set[tuple[int, ...]] = set()
    # Closed in any case: a process that ends while a state is being written loses it.
    with until_terminated() as terminated, closing(checkpoints):
        for batch in _batches_from(stage, done, until):
            shape = batch["input_ids"].shape
            placed = batch if layout is None else layout.batch(batch)
            if shape in compiled:
                state, logged = step(state, fixed, placed, key, np.int32(done))
                pace.count()
            else:
                # Steps before it may be under way: their time counts, that of the compilation not.
                jax.block_until_ready(state)
                with pace.aside():
                    state, logged = step(state, fixed, placed, key, np.int32(done))
                    jax.block_until_ready(state)
                compiled.add(shape)
            done += 1
            ends = done % per_epoch == 0 or done == stage.steps
            logs = done % LOG_EVERY == 0 or done == until
            if ends or logs:
                _check(stage, state, float(logged["loss"]), checkpoints)
            if logs:
                values = {name: float(value) for name, value in logged.items()}
                seconds = pace.seconds()
                with pace.aside():
                    monitor.row(
                        {"stage": stage.name, "step": done, "steps": stage.steps, **values}
                        | extras(done)
                        | ({} if seconds is None else {"seconds_per_step": round(seconds, 4)})
                    )
                    if not ends:
                        checkpoints.save_if_due(state)
            # Asked before a validation, which may outlast the grace a cluster gives, and after it.
            stops = terminated(done)
            if ends and not stops:
                jax.block_until_ready(state)
                with pace.aside():
                    value = stage.validate({**fixed, **state.params})
                    monitor.row(
                        {"stage": stage.name, "step": done, f"validation_{stage.metric}": value}
                    )
                    checkpoints.save_if_due(state, now=True, value=stage.goodness(value))
                stops = terminated(done)
            if stops:
                _check(stage, state, float(logged["loss"]), checkpoints)
                checkpoints.save_if_due(state, now=True)
                raise Terminated
    return state


def _check(stage: Loop, state: TrainState, loss: float, checkpoints: Checkpoints) -> None:
    """Stop a stage that has diverged.

    A step that fails and those after it leave the state as it was, so `state` is the last good one.
    Weights that overflow are seen at the step after theirs, and the last checkpoint is kept.
    """
    good = bool(_all_finite(state.params))
    if np.isfinite(loss) and good:
        return
    if good:
        checkpoints.save_if_due(state, now=True)
    raise LpafError(
        f"stage {stage.name}: training diverged at step {int(state.step) + good} of "
        f"{stage.steps}, where the {'loss or its gradient' if good else 'weights'} became NaN or "
        "infinite; lower the learning rate of this stage (to keep the earlier stages, use "
        "--reuse and another --out)"
    )


@jax.jit
def _all_finite(params: Params) -> Array:
    return jnp.array([jnp.isfinite(x).all() for x in params.values()]).all()


def _batches_from(stage: Loop, start: int, until: int) -> Iterator[Batch]:
    per_epoch = steps_per_epoch(len(stage.data), stage.batch_size)
    while start < until:
        epoch, position = divmod(start, per_epoch)
        batches = train_batches(stage.data, stage.batch_size, seed=stage.seed, epoch=epoch)
        part = batches[position : position + until - start]
        yield from part
        start += len(part)


def predict(
    forward: Forward,
    params: Params,
    data: Encoded,
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda done, count: None,
    layout: Layout | None = None,
    fixed: Params | None = None,
) -> np.ndarray:
    """Logits of all examples, in the order of the data.

    They are (n, labels), or what else `forward` gives for each example; or (n, length, ...) where
    each token has its own, from which those of tokens beyond a text are minus infinity.

    Args:
        on_batch: is called after each batch with how many are done, of how many.
        layout: of the devices that `params` are spread over.
        fixed: see `as_function`.

    Raises:
        LpafError: the logits are not all finite.
    """
    batches = eval_batches(data, batch_size)
    longest = max(batches.lengths)
    logits = []
    for done, batch in enumerate(batches, start=1):
        placed = batch if layout is None else layout.batch(batch)
        found = on_host(forward(params, fixed or {}, placed))
        if not np.isfinite(found).all():  # no answer at all: each comparison would be false
            raise LpafError(
                "the model's outputs are not finite: its weights are damaged, or it overflows"
            )
        if found.ndim > 2:
            found = np.where(batch["attention_mask"][..., None] > 0, found, -np.inf)
            missing = longest - found.shape[1]
            found = np.pad(found, ((0, 0), (0, missing), (0, 0)), constant_values=-np.inf)
        logits.append(found[batch["weight"] > 0])
        on_batch(done, len(batches))
    return batches.restore(np.concatenate(logits))
