"""A batch in parts is the batch, and a step that went wrong is no step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpaf_jax.models.functional import Outputs
from lpaf_jax.train import (
    CLASSIFICATION,
    LANGUAGE,
    REGRESSION,
    SPANS,
    Keys,
    distilled,
    dual_loss,
    initial_state,
    make_step,
    task_loss,
    with_teacher,
)
from lpaf_jax.train.steps import Loss
from tests.programs import equations

ROWS, LENGTH, WIDTH = 8, 5, 3
KEY = jax.random.key(7)
Batch = dict[str, np.ndarray]

# Rows that count: all; all but filling ones; so few that one of four parts has none.
WEIGHTS = {
    "whole": np.ones(ROWS),
    "filled up": np.array([1, 1, 1, 1, 1, 1, 0, 0]),
    "a part of filling rows": np.array([1, 1, 1, 0, 0, 0, 0, 0]),
}


@pytest.fixture
def params() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = {"w": (WIDTH, WIDTH), "head": (WIDTH, 2)}
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


def batch(weight: np.ndarray, labels: Any) -> Batch:
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, LENGTH + 1, (ROWS, 1))
    return {
        "x": rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32),
        "attention_mask": (np.arange(LENGTH) < lengths).astype(np.int32),
        "labels": labels(rng),
        "weight": weight.astype(np.float32),
    }


def tokens(params: Any, fixed: Any, batch: Any, key: Any = None, draws: Any = None) -> jax.Array:
    """Outputs of each token; with draws, scaled by them."""
    scale = 1.0 if draws is None else 1 + draws.sum()
    return scale * jnp.tanh(batch["x"] @ params["w"]) @ params["head"]


def pooled(*args: Any) -> jax.Array:
    return tokens(*args)[:, 0]


def first_output(*args: Any) -> jax.Array:
    return tokens(*args)[:, 0, :1]


def with_hidden(params: Any, fixed: Any, batch: Any, key: Any = None) -> Any:
    return Outputs(pooled(params, fixed, batch), (batch["x"] @ params["w"])[None])


def classes(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2, ROWS).astype(np.int32)


LOSSES: dict[str, tuple[Loss, Any]] = {
    "classes": (task_loss(pooled), classes),
    "regression": (
        task_loss(first_output, REGRESSION),
        lambda rng: rng.normal(size=ROWS).astype(np.float32),
    ),
    "spans": (
        task_loss(tokens, SPANS),
        lambda rng: rng.integers(0, 2, (ROWS, 2)).astype(np.int32),
    ),
    "two passes": (dual_loss(pooled, lambda step: jnp.float32(0.5), 4, 0.7), classes),
    "distilled": (
        with_teacher(
            task_loss(with_hidden, distilled(CLASSIFICATION, 0.5, temperature=2.0, hidden=0.3)),
            lambda _, *rest: with_hidden(
                {"w": 2 * jnp.eye(WIDTH), "head": jnp.ones((3, 2))}, *rest
            ),
        ),
        classes,
    ),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", LOSSES)
def test_four_parts_are_the_whole(name: str, weights: str, params: Any) -> None:
    loss, labels = LOSSES[name]
    rows = batch(WEIGHTS[weights], labels)
    optimizer = optax.sgd(1.0)  # the step is the gradient
    ends = []
    for parts in (1, 4):
        step = make_step(loss, optimizer, accumulate=parts)
        ends.append(step(initial_state(params, optimizer), {}, rows, KEY))
    (whole, logged), (cut, logged_cut) = ends
    assert logged.keys() == logged_cut.keys()
    for quantity, value in logged.items():
        assert float(logged_cut[quantity]) == pytest.approx(float(value), rel=1e-5), quantity
    assert float(logged["loss"]) > 0
    for path, start in params.items():
        slope = np.asarray(whole.params[path] - start)
        assert np.any(slope)
        np.testing.assert_allclose(cut.params[path] - start, slope, rtol=1e-4, atol=1e-6)
    assert int(cut.step) == 1


def test_parts_share_the_draws_and_not_the_dropout(params: Any) -> None:
    shared, own = [], []

    def loss(params: Any, fixed: Any, batch: Any, keys: Keys, step: Any) -> Any:
        pair = jax.random.uniform(keys.shared), jax.random.uniform(keys.own)
        jax.debug.callback(lambda a, b: (shared.append(float(a)), own.append(float(b))), *pair)
        return jnp.sum(params["w"]), {}

    optimizer = optax.sgd(0.1)
    step = make_step(loss, optimizer, accumulate=4)
    state = initial_state(params, optimizer)
    for _ in range(2):
        state, _ = step(state, {}, batch(np.ones(ROWS), classes), KEY)
    jax.effects_barrier()
    # Tracing aside, each part of each step calls once.
    assert len(own) == 8
    assert len(set(own)) == 8
    assert len(set(shared[:4])) == len(set(shared[4:])) == 1
    assert shared[0] != shared[4]


def test_holds_the_memory_of_a_part(params: Any) -> None:
    rows = batch(np.ones(ROWS), classes)
    optimizer = optax.sgd(0.1)
    state = initial_state(params, optimizer)

    def products(parts: int) -> set[int]:
        """Rows of what the model computes."""
        step = make_step(task_loss(pooled), optimizer, accumulate=parts)
        program = equations(step, state, {}, rows, KEY)
        return {e.outvars[0].aval.shape[0] for e in program if e.primitive.name == "tanh"}

    assert products(1) == {8}
    assert products(4) == {2}


def test_parts_must_divide_the_batch(params: Any) -> None:
    optimizer = optax.sgd(0.1)
    step = make_step(task_loss(pooled), optimizer, accumulate=3)
    with pytest.raises(ValueError, match="a batch of 8 cannot be split into 3 equal parts"):
        step(initial_state(params, optimizer), {}, batch(np.ones(ROWS), classes), KEY)


def held(tree: Any) -> Any:
    return jax.tree.map(np.array, tree)


def value_of(number: float) -> Loss:
    """A loss of this value, with gradient 1."""
    return lambda params, *_: (jnp.sum(params["w"]) + number, {})


def slope_of(number: float) -> Loss:
    """A finite loss with this gradient in a single entry."""

    @jax.custom_vjp
    def one(w: jax.Array) -> jax.Array:
        return jnp.sum(w)

    one.defvjp(lambda w: (jnp.sum(w), w), lambda w, g: (jnp.zeros_like(w).at[1, 1].set(number),))
    return lambda params, *_: (one(params["w"]), {"other": jnp.float32(3)})


BROKEN = {
    "loss is NaN": value_of(np.nan),
    "loss is infinite": value_of(np.inf),
    "gradient has a NaN": slope_of(np.nan),
    "gradient has an infinity": slope_of(-np.inf),
}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", BROKEN)
def test_a_step_that_is_not_finite_changes_nothing(name: str, parts: int, params: Any) -> None:
    optimizer = optax.adamw(0.1)
    rows = batch(np.ones(ROWS), classes)
    good = make_step(task_loss(pooled), optimizer)
    broken = make_step(BROKEN[name], optimizer, accumulate=parts)
    state, _ = good(initial_state(params, optimizer), {}, rows, KEY)
    before = held(state)
    state, logged = broken(state, {}, rows, KEY)
    assert np.isnan(logged["loss"])
    assert int(state.step) == 1
    assert jax.tree.all(jax.tree.map(np.array_equal, held(state), before))
    # The next good step is the one an unbroken run would have made.
    again, _ = good(state, {}, rows, KEY)
    assert int(again.step) == 2
    assert all(np.isfinite(x).all() for x in again.params.values())


@pytest.mark.parametrize("parts", [1, 4])
def test_a_batch_without_an_example_is_no_step(parts: int, params: Any) -> None:
    optimizer = optax.adamw(0.1)
    step = make_step(task_loss(pooled), optimizer, accumulate=parts)
    state, logged = step(initial_state(params, optimizer), {}, batch(np.zeros(ROWS), classes), KEY)
    assert np.isnan(logged["loss"])
    assert int(state.step) == 0
    for path, start in params.items():
        np.testing.assert_array_equal(state.params[path], start)


def test_a_text_has_empty_labels() -> None:
    """Windows of a text are their own labels: there is an array of none."""
    rows = {
        "input_ids": np.arange(24, dtype=np.int32).reshape(4, 6) % 5,
        "attention_mask": np.ones((4, 6), np.int32),
        "labels": np.zeros((4, 0), np.int32),
        "weight": np.ones(4, np.float32),
    }
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)), jnp.float32)}

    def forward(params: Any, fixed: Any, batch: Any, key: Any = None, draws: Any = None) -> Any:
        return params["w"][batch["input_ids"]]

    found = []
    for parts in (1, 2, 4):
        optimizer = optax.sgd(1.0)
        step = make_step(task_loss(forward, LANGUAGE), optimizer, accumulate=parts)
        state, _ = step(initial_state(params, optimizer), {}, rows, KEY)
        found.append(np.asarray(state.params["w"]))
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], atol=1e-6)
