"""Tune the factors of one block of a decoder, so that its states come out as the dense model's."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from lpaf_jax.checkpoints import records_of
from lpaf_jax.factorization.states import States, parts
from lpaf_jax.models.functional import Params, parameters, set_parameters


def tune_block(
    block: nnx.Module, given: States, wanted: States, *, epochs: int, lr: float, seed: int
) -> tuple[float, float]:
    """Tune the factors of `block` in place, and what is else in their layers.

    Minimises `1/T Σ_t ‖f(x̂_t) − y_t‖² / ‖y_t‖²`, f the block, x̂ the states that the compressed
    blocks before it leave and y those of the dense model after it: so a block also makes up for
    what was lost before. Each token counts for its share, as the norms of the blocks that follow
    have it; some tokens have states a thousand times the others'.

    Args:
        block: with factors in the place of some of its matrices.
        given: x̂. wanted: y.
        epochs: passes over the texts. lr: of Adam, falling to 0 along a cosine.
        seed: of the order of the texts.

    Returns:
        the error before and after. Where it has not become less, the factors are as they were.

    Cost: three forward passes of the block a pass over the texts.

    Source: the block-wise part of tuning after SVD, as in AA-SVD (2026).
    """
    cut = records_of(block)
    tuned = {
        path: value for path, value in parameters(block).items() if path.rpartition(".")[0] in cut
    }
    if not tuned:
        return 0.0, 0.0
    graphdef, state = nnx.split(block)
    pairs = list(zip(parts(given.x), parts(wanted.x), strict=True))
    optimiser = optax.adam(optax.cosine_decay_schedule(lr, epochs * len(pairs)))
    before = _error(graphdef, state, tuned, given, wanted)
    # Copies: what goes through a step is used up by it.
    untuned, tuned = tuned, jax.tree.map(jnp.copy, tuned)
    moments = optimiser.init(tuned)
    step = partial(_step, graphdef, optimiser.update)
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        for i in order.permutation(len(pairs)):
            x, y = pairs[i]
            context = given.context[len(x)]
            tuned, moments = step(tuned, moments, state, x, y, context)
    after = _error(graphdef, state, tuned, given, wanted)
    set_parameters(block, tuned if after < before else untuned)
    return before, min(before, after)


def _error(graphdef: Any, state: Any, tuned: Params, given: States, wanted: States) -> float:
    total = 0.0
    for x, y in zip(parts(given.x), parts(wanted.x), strict=True):
        total += len(x) * float(_lost(graphdef, tuned, state, x, y, given.context[len(x)]))
    return total / len(given.x)


@partial(jax.jit, static_argnums=0)
def _lost(graphdef: Any, tuned: Params, state: Any, x: Array, y: Array, context: Any) -> Array:
    block: Any = nnx.merge(graphdef, state)
    set_parameters(block, tuned)
    lost = jnp.sum(jnp.square(block(x, context) - y), axis=-1)
    return jnp.mean(lost / jnp.sum(jnp.square(y), axis=-1))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(
    graphdef: Any,
    update: Any,
    tuned: Params,
    moments: Any,
    state: Any,
    x: Array,
    y: Array,
    context: Any,
) -> tuple[Params, Any]:
    slope = jax.grad(lambda tuned: _lost(graphdef, tuned, state, x, y, context))(tuned)
    change, moments = update(slope, moments, tuned)
    return optax.apply_updates(tuned, change), moments
