"""Pruning around other optimisers, on any tree of parameters, donated and saved."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpaf_jax.train import (
    Checkpoints,
    TrainState,
    cubic_sparsity,
    initial_state,
    make_step,
    prune,
)


class Head(NamedTuple):
    kernel: Any
    bias: Any


@pytest.fixture
def params() -> Any:
    rng = np.random.default_rng(5)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    layers = [{"kernel": array(3, 4), "bias": array(4)}, {"kernel": array(4, 3), "bias": array(3)}]
    return {"layers": layers, "head": Head(array(3, 2), array(2)), "scale": (array(), None)}


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim == 2, params)


def labels(params: Any) -> Any:
    return jax.tree.map(lambda x: "matrix" if x.ndim == 2 else "rest", params)


OPTIMIZERS = {
    "adamw": optax.adamw(0.05, weight_decay=0.1, mask=matrices),
    "chain": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.05)),
    "multi_transform": optax.multi_transform(
        {"matrix": optax.adam(0.05), "rest": optax.sgd(0.1)}, labels
    ),
}


def copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


class Training:
    """Steps of one optimiser, compiled once; they donate parameters and state."""

    def __init__(self, optimizer: optax.GradientTransformation, params: Any):
        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, t: int) -> Any:
            grads = jax.tree.map(lambda p: jnp.sin(3 * p + t), params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._step = step
        self.start = params, jax.jit(optimizer.init)(params)

    def run(self, steps: range, given: Any = None) -> Any:
        params, state = copied(self.start if given is None else given)
        for t in steps:
            params, state = self._step(params, state, t)
        return params, state


def assert_same_bits(first: Any, second: Any) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_keeping_everything_is_the_inner_optimiser(name: str, params: Any) -> None:
    inner = OPTIMIZERS[name]
    pruned = prune(inner, cubic_sparsity(8, 0, 0, 1.0), matrices, mask_every=2)
    found, state = Training(pruned, params).run(range(8))
    expected, inner_state = Training(inner, params).run(range(8))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert jax.tree.structure(state.inner) == jax.tree.structure(inner_state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_under_any_optimiser_donated_saved_and_resumed(
    name: str, params: Any, tmp_path: Path
) -> None:
    optimizer = prune(OPTIMIZERS[name], cubic_sparsity(9, 0, 2, 0.25), matrices, mask_every=2)
    training = Training(optimizer, params)
    unbroken = training.run(range(9))
    kernels = [x for x in jax.tree.leaves(unbroken[0]) if x.ndim == 2]
    assert sum(np.count_nonzero(w) for w in kernels) == round(0.25 * (12 + 12 + 6))

    halfway = training.run(range(5))
    leaves, treedef = jax.tree.flatten(halfway)
    assert_same_bits(jax.tree.unflatten(treedef, leaves), halfway)
    saved = TrainState(jnp.int32(5), *halfway)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_if_due(saved, now=True)
    checkpoints.close()
    restored = checkpoints.restore(TrainState(jnp.int32(0), *training.start))
    checkpoints.close()
    assert_same_bits(restored, saved)
    resumed = training.run(range(5, 9), (restored.params, restored.opt_state))
    assert_same_bits(resumed, unbroken)


def test_in_a_training_step_that_donates_its_state(params: Any) -> None:
    # The dense weights must not be the very buffers of the parameters they start as.
    optimizer = prune(optax.sgd(0.1), cubic_sparsity(4, 0, 1, 0.5), matrices, mask_every=1)

    def loss(params: Any, fixed: Any, batch: Any, keys: Any, step: Any) -> Any:
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params)), {}

    step = make_step(loss, optimizer)
    state = initial_state(params, optimizer)
    for _ in range(4):
        state, _ = step(state, {}, {}, jax.random.key(0))
    kernels = [x for x in jax.tree.leaves(state.params) if x.ndim == 2]
    assert sum(np.count_nonzero(w) for w in kernels) == 15
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))
