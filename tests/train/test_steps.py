"""Steps: traced once, random by (key, step) alone, their state given away."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from lpaf_jax.train import Keys, TrainState, initial_state, make_step, task_loss

Batch = dict[str, np.ndarray]
KEY = jax.random.key(7)


def batches(count: int, rows: int = 4) -> list[Batch]:
    rng = np.random.default_rng(rows)
    return [
        {
            "x": rng.normal(size=(rows, 3)).astype(np.float32),
            "labels": rng.integers(0, 2, rows).astype(np.int32),
            "weight": np.array([1] * (rows - 1) + [0], np.float32),
        }
        for _ in range(count)
    ]


class Model:
    """A linear model with dropout that counts how often it is traced."""

    def __init__(self) -> None:
        self.traces = 0

    def __call__(self, params: Any, fixed: Any, batch: Any, key: jax.Array) -> jax.Array:
        self.traces += 1
        kept = jax.random.bernoulli(key, 0.7, batch["x"].shape)
        return jnp.where(kept, batch["x"], 0) @ (params["w"] * fixed["w"]) + params["b"]


OPTIMIZER = optax.adam(0.1)
STEP = make_step(task_loss(Model()), OPTIMIZER)  # compiled once for the tests that share it


@pytest.fixture
def params() -> dict[str, jax.Array]:
    return {"w": jnp.array([[1.0, -1.0], [0.5, 2.0], [-2.0, 0.1]]), "b": jnp.zeros(2)}


@pytest.fixture
def masks() -> dict[str, jax.Array]:
    return {"w": jnp.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])}


def held(tree: Any) -> Any:
    return jax.tree.map(np.array, tree)


def same_bits(first: Any, second: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, held(first), held(second)))


def test_traced_once_for_each_shape(params: Any, masks: Any) -> None:
    model, optimizer = Model(), optax.sgd(0.1)
    step = make_step(task_loss(model), optimizer)
    state = initial_state(params, optimizer)
    for batch in batches(5):
        state, _ = step(state, masks, batch, KEY)
    assert model.traces == 1
    for batch in batches(2, rows=6):
        state, _ = step(state, masks, batch, KEY)
    assert model.traces == 2
    assert int(state.step) == 7


def test_resuming_from_a_copy_is_bit_equal(params: Any, masks: Any) -> None:
    state, copies, losses = initial_state(params, OPTIMIZER), [], []
    for batch in batches(6):
        copies.append(held(state))
        state, logged = STEP(state, masks, batch, KEY)
        losses.append(float(logged["loss"]))
    for t in (1, 4):
        again = jax.tree.map(jnp.array, copies[t])
        for batch, loss in zip(batches(6)[t:], losses[t:], strict=True):
            again, logged = STEP(again, masks, batch, KEY)
            assert float(logged["loss"]) == loss
        assert same_bits(again, state)


def test_each_step_and_each_seed_draws_its_own(params: Any) -> None:
    def loss(params: Any, fixed: Any, batch: Any, keys: Keys, step: jax.Array) -> Any:
        return jnp.sum(params["w"]), {"draw": jax.random.uniform(keys.own), "t": step}

    optimizer = optax.sgd(0.1)
    step = make_step(loss, optimizer)

    def draws(key: jax.Array) -> list[float]:
        state, found = initial_state(params, optimizer), []
        for t in range(4):
            state, logged = step(state, {}, {}, key)
            assert int(logged["t"]) == t
            found.append(float(logged["draw"]))
        return found

    first = draws(KEY)
    assert draws(KEY) == first  # by key and step alone
    assert len({*first, *draws(jax.random.key(8))}) == 8


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_batch_that_is_not_the_next_changes_nothing(at: int, params: Any, masks: Any) -> None:
    first, second = batches(2)
    state, _ = STEP(initial_state(params, OPTIMIZER), masks, first, KEY, np.int32(0))
    before = held(state)
    state, logged = STEP(state, masks, second, KEY, np.int32(at))
    assert np.isfinite(logged["loss"]) == (at == 1)
    assert same_bits(state, before) == (at != 1)


def test_state_is_donated_and_what_it_was_made_of_is_not(params: Any, masks: Any) -> None:
    before = held(params)
    first = initial_state(params, OPTIMIZER)
    state, _ = STEP(first, masks, batches(1)[0], KEY)
    assert all(x.is_deleted() for x in jax.tree.leaves((first.params, first.opt_state)))
    STEP(state, masks, batches(1)[0], KEY)
    assert same_bits(params, before)  # neither deleted nor overwritten
    assert not any(x.is_deleted() for x in jax.tree.leaves(masks))


def test_step_is_the_gradient_of_the_loss_at_the_current_parameters(params: Any) -> None:
    # ½ w² under gradient descent: w ← 0.9 w.
    def loss(params: Any, fixed: Any, batch: Any, keys: Keys, step: jax.Array) -> Any:
        return 0.5 * jnp.sum(params["w"] ** 2), {}

    optimizer = optax.sgd(0.1)
    step = make_step(loss, optimizer)
    state = initial_state(params, optimizer)
    assert isinstance(state, TrainState)
    for _ in range(3):
        state, logged = step(state, {}, {}, KEY)
    w = np.asarray(params["w"], float)
    np.testing.assert_allclose(state.params["w"], 0.9**3 * w, rtol=1e-6)
    assert float(logged["loss"]) == pytest.approx(0.5 * (0.81**2) * (w**2).sum(), rel=1e-6)


def test_task_loss_is_the_cross_entropy_of_one_pass(params: Any, masks: Any) -> None:
    (batch,) = batches(1)
    keys = Keys(jax.random.key(0), KEY)
    value, logged = task_loss(Model())(params, masks, batch, keys, jnp.int32(0))
    kept = np.asarray(jax.random.bernoulli(KEY, 0.7, batch["x"].shape))
    logits = (kept * batch["x"]).astype(float) @ (np.asarray(params["w"]) * np.asarray(masks["w"]))
    rows = -log_softmax(logits, axis=-1)[np.arange(4), batch["labels"]]
    assert float(value) == pytest.approx(rows[:3].mean(), rel=1e-5)
    assert logged == {}
