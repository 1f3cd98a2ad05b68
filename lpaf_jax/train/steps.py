"""Training steps: pure functions, jitted once per batch shape."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.custom_batching import custom_vmap

from lpaf_jax.models.functional import Batch, Forward, Params
from lpaf_jax.train.layout import Layout
from lpaf_jax.train.losses import CLASSIFICATION, TEACHER, Objective
from lpaf_jax.train.schedules import Schedule

_TEACHER = f"{TEACHER}."


class Keys(NamedTuple):
    """The randomness of a step.

    Attributes:
        shared: for what all examples of the step share, such as the draws of mixed layers.
        own: for what is each example's own, such as dropout; another for each part of a batch
            where gradients are accumulated.
    """

    shared: Array
    own: Array


# loss(params, fixed, batch, keys, step) -> (loss, quantities to log)
Loss = Callable[[Params, Params, Batch, Keys, Array], tuple[Array, dict[str, Array]]]
Step = Callable[..., tuple["TrainState", dict[str, Array]]]


class TrainState(NamedTuple):
    """What a step carries: all that a resumed run needs beside the seed."""

    step: Array
    params: Params
    opt_state: Any


def initial_state(
    params: Params, optimizer: optax.GradientTransformation, layout: Layout | None = None
) -> TrainState:
    """The state before the first step, spread over the devices of `layout`.

    The parameters are copied: steps donate their state.
    """

    def make(params: Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    if layout is None:
        return make(jax.tree.map(jnp.copy, params))
    shardings = layout.of(jax.eval_shape(make, params))
    return jax.jit(make, out_shardings=shardings)(layout.place(params))


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    layout: Layout | None = None,
) -> Step:
    """`step(state, fixed, batch, key, at=None) -> (state, logged)`, jitted; `state` is donated.

    The randomness of step t is a function of the key and t, so a resumed run draws what an
    unbroken one would. A step whose loss or norm of the gradient is NaN or infinite changes
    nothing: the state returned is the one that went in, its count of steps included, and
    `logged["loss"]` tells. So does a step that is given `at`, the count of steps that its batch is
    for, and a state of another count: steps sent off before it is seen that one has failed leave
    the state before that one.

    Args:
        loss: of parameters, what is not trained (`fixed`), batch, keys and step.
        optimizer: any optax transformation; one that takes extra arguments is given `fixed`.
        accumulate: parts a batch is cut into, whose gradients are summed one after another: the
            memory of a part for the step of the whole. The batch size must be a multiple.
        layout: of the devices that the state is spread over; None for one device.
    """
    move = optax.with_extra_args_support(optimizer).update

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, fixed: Params, batch: Batch, key: Array, at: Array | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        keys = Keys(*jax.random.split(jax.random.fold_in(key, state.step)))
        slope = jax.value_and_grad(loss, has_aux=True)
        if accumulate == 1:
            (value, logged), grads = slope(state.params, fixed, batch, keys, state.step)
        else:
            (value, logged), grads = _accumulated(slope, accumulate, state, fixed, batch, keys)
        updates, opt_state = move(grads, state.opt_state, state.params, fixed=fixed)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, opt_state)
        # The norm is what clipping asks for, too, so it is computed once.
        good = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
        good &= True if at is None else at == state.step
        new = jax.tree.map(lambda now, before: jnp.where(good, now, before), new, state)
        if layout is not None:
            new = jax.lax.with_sharding_constraint(new, layout.of(new))
        return new, {"loss": jnp.where(good, value, jnp.nan), **logged}

    return step


def _accumulated(
    slope: Callable[..., Any],
    parts: int,
    state: TrainState,
    fixed: Params,
    batch: Batch,
    keys: Keys,
) -> Any:
    """Value, logged and gradient of the whole batch: the means of its parts by their weight."""
    rows = len(batch["weight"])
    if rows % parts:
        raise ValueError(f"a batch of {rows} cannot be split into {parts} equal parts")
    # Every parts-th row, so that each device holds rows of every part.
    each = rows // parts  # said, as the labels of a text are empty: of them -1 says nothing
    cut = jax.tree.map(lambda x: x.reshape(each, parts, *x.shape[1:]).swapaxes(0, 1), dict(batch))
    total = jnp.sum(batch["weight"])

    def add(found: Any, part: tuple[Array, Batch]) -> tuple[Any, None]:
        index, rows = part
        own = jax.random.fold_in(keys.own, index)
        new = slope(state.params, fixed, rows, keys._replace(own=own), state.step)
        # A part of filling rows alone has a mean of 0 / 0; a whole batch of them keeps it.
        share = jnp.sum(rows["weight"]) / total
        return jax.tree.map(
            lambda s, x: s + jnp.where(share == 0, 0, (share * x).astype(x.dtype)), found, new
        ), None

    first = jax.tree.map(lambda x: x[0], cut)
    shapes = jax.eval_shape(slope, state.params, fixed, first, keys, state.step)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(parts), cut))[0]


def task_loss(forward: Forward, objective: Objective = CLASSIFICATION) -> Loss:
    """The loss of one pass, the cross-entropy of its classes unless `objective` is another."""

    def loss(
        params: Params, fixed: Params, batch: Batch, keys: Keys, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        return objective.loss(forward(params, fixed, batch, keys.own), batch), {}

    return loss


def dual_loss(
    forward: Forward,
    probability: Schedule,
    layers: int,
    consistency: float,
    objective: Objective = CLASSIFICATION,
) -> Loss:
    """The loss of mixed-rank fine-tuning: two passes with independent draws.

        L = ½ (L_task(y_z¹) + L_task(y_z²)) + c · D(y_z¹, y_z²),    z_i ~ Bernoulli(p_t)

    One draw a mixed layer and pass, shared by the batch; the passes are one `vmap` over the pair
    of draws and dropout keys. D is the divergence of the objective: symmetric KL for classes, its
    mean over start and end for spans, the squared difference for regression.

    Args:
        forward: of a model with mixed layers; with `layers=0`, of its factors alone.
        probability: p_t, the chance that a layer takes its dense branch.
        layers: number of mixed layers.
        consistency: c, the weight of the consistency term.
        objective: of the task.

    Source: Ren & Zhu, LPAF, 2024. The paper leaves the divergence open: the symmetric one is ours.
    """
    one_pass = _in_turn(lambda given, z, key: forward(*given, key, z))

    def loss(
        params: Params, fixed: Params, batch: Batch, keys: Keys, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        p = probability(step)
        draws = jax.random.bernoulli(keys.shared, p, (2, layers)).astype(jnp.float32)
        pair = jax.random.split(keys.own, 2)
        given = params, fixed, dict(batch)
        both = jax.vmap(one_pass, in_axes=(None, 0, 0))(given, draws, pair)
        first, second = (jax.tree.map(lambda x, i=i: x[i], both) for i in (0, 1))
        task = 0.5 * (objective.loss(first, batch) + objective.loss(second, batch))
        gap = objective.divergence(first, second, batch)
        return task + consistency * gap, {"task_loss": task, "consistency": gap, "p": p}

    return loss


def _in_turn(one: Callable[[Any, Array, Array], Any]) -> Callable[..., Any]:
    """`one(given, z, key)`, which `vmap` over z and key takes through its elements in turn.

    Under a plain `vmap` a layer's choice between two branches becomes both, and products of a
    batch of matrices with one matrix are slower on CPU than twice that of one.
    """
    single = custom_vmap(one)

    @single.def_vmap
    def stacked(size: int, batched: Any, given: Any, z: Array, key: Array) -> tuple[Any, Any]:
        if any(jax.tree.leaves(batched[0])):
            raise ValueError("passes may differ only in their draws and keys")
        outputs = [one(given, z[i], key[i]) for i in range(size)]
        return jax.tree.map(lambda *each: jnp.stack(each), *outputs), jax.tree.map(
            lambda _: True, outputs[0]
        )

    return single


def with_teacher(loss: Loss, teacher: Forward) -> Loss:
    """`loss` with the teacher's outputs in its batch, for an objective that is `distilled`.

    The teacher passes once a step, without dropout, whatever the number of passes of the student.

    Args:
        loss: of any kind.
        teacher: a function of the parameters that `fixed` holds by `teacher_parameters`.
    """

    def taught(
        params: Params, fixed: Params, batch: Batch, keys: Keys, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        theirs = {n.removeprefix(_TEACHER): x for n, x in fixed.items() if n.startswith(_TEACHER)}
        outputs = jax.lax.stop_gradient(teacher(theirs, {}, batch))
        return loss(params, fixed, {**batch, TEACHER: outputs}, keys, step)

    return taught


def teacher_parameters(params: Params) -> Params:
    """The parameters of a teacher by the names under which `fixed` holds them."""
    return {_TEACHER + name: x for name, x in params.items()}
