"""Training steps: pure functions, jitted once per batch shape."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lpaf_jax.models.functional import Batch, Forward, Params
from lpaf_jax.train.losses import cross_entropy, symmetric_kl
from lpaf_jax.train.schedules import Schedule

# loss(params, masks, batch, key, step) -> (loss, quantities to log)
Loss = Callable[[Params, Params, Batch, Array, Array], tuple[Array, dict[str, Array]]]
Step = Callable[..., tuple["TrainState", dict[str, Array]]]


class TrainState(NamedTuple):
    """What a step carries: all that a resumed run needs beside the seed."""

    step: Array
    params: Params
    opt_state: Any


def initial_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. The parameters are copied: steps donate their state."""
    params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_step(loss: Loss, optimizer: optax.GradientTransformation) -> Step:
    """`step(state, masks, batch, key) -> (state, logged)`, jitted; `state` is donated.

    The randomness of step t is `fold_in(key, t)`, so a resumed run draws what an unbroken one
    would.
    """

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, masks: Params, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        (value, logged), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, masks, batch, jax.random.fold_in(key, state.step), state.step
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {"loss": value, **logged}

    return step


def task_loss(forward: Forward) -> Loss:
    """The mean cross-entropy of one pass."""

    def loss(
        params: Params, masks: Params, batch: Batch, key: Array, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        logits = forward(params, masks, batch, key)
        return cross_entropy(logits, batch["labels"], batch["weight"]), {}

    return loss


def dual_loss(forward: Forward, probability: Schedule, layers: int, consistency: float) -> Loss:
    """The loss of mixed-rank fine-tuning: two passes with independent draws.

        L = ½ (CE(y_z¹) + CE(y_z²)) + c · ½ (KL(p₁‖p₂) + KL(p₂‖p₁)),    z_i ~ Bernoulli(p_t)

    One draw a mixed layer and pass, shared by the batch; the passes are one `vmap` over the pair
    of draws and dropout keys.

    Args:
        forward: of a model with mixed layers; with `layers=0`, of its factors alone.
        probability: p_t, the chance that a layer takes its dense branch.
        layers: number of mixed layers.
        consistency: c, the weight of the consistency term.

    Source: Ren & Zhu, LPAF, 2024. The paper leaves the divergence open: the symmetric one is ours.
    """

    def loss(
        params: Params, masks: Params, batch: Batch, key: Array, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        draw_key, dropout_key = jax.random.split(key)
        p = probability(step)
        draws = jax.random.bernoulli(draw_key, p, (2, layers)).astype(jnp.float32)
        keys = jax.random.split(dropout_key, 2)
        first, second = jax.vmap(lambda z, k: forward(params, masks, batch, k, z))(draws, keys)
        task = 0.5 * (
            cross_entropy(first, batch["labels"], batch["weight"])
            + cross_entropy(second, batch["labels"], batch["weight"])
        )
        gap = symmetric_kl(first, second, batch["weight"])
        return task + consistency * gap, {"task_loss": task, "consistency": gap, "p": p}

    return loss
