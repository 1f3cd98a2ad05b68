"""Bfloat16 compute with float32 masters: close to float32, and float32 where it has to be."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpaf_jax.models import as_function, fixed_arrays, parameters
from lpaf_jax.train import cross_entropy, initial_state, make_step, task_loss
from tests.programs import equations

NARROW = jnp.bfloat16
DRAWS = jnp.asarray([1, 0, 0, 1, 1, 0], jnp.float32)
MODELS = ["model", "factorized", "mixed"]
LABELS = np.array([0, 2, 1], np.int32)
WEIGHT = np.ones(3, np.float32)


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Any:
    """A model and its draws."""
    return request.getfixturevalue(request.param), DRAWS if request.param == "mixed" else None


def outputs(case: Any, batch: Any, dtype: Any) -> Any:
    model, draws = case
    forward = as_function(model, hidden=True, dtype=dtype)
    return forward(parameters(model), fixed_arrays(model), batch, None, draws)


def test_close_to_float32(case: Any, batch: Any, jit: Any) -> None:
    """Hidden states within 2 % of their size, five roundings of 8 bits; logits within 5 %."""
    narrow, wide = (jit(lambda b, d=d: outputs(case, b, d))(batch) for d in (NARROW, None))
    assert narrow.logits.dtype == narrow.hidden.dtype == jnp.float32
    assert narrow.hidden.shape == wide.hidden.shape
    real = np.asarray(batch["attention_mask"]) > 0
    for found, exact in zip(narrow.hidden, wide.hidden, strict=True):
        size = np.linalg.norm(exact[real])
        assert 1e-4 < np.linalg.norm((found - exact)[real]) / size < 0.02
    error = np.linalg.norm(narrow.logits - wide.logits) / np.linalg.norm(wide.logits)
    assert 1e-4 < error < 0.05


def test_what_is_narrow_and_what_is_not(case: Any, batch: Any) -> None:
    program = equations(lambda b: outputs(case, b, NARROW), batch)
    operands: dict[str, set[Any]] = {}
    for equation in program:
        kinds = {v.aval.dtype.name for v in equation.invars}
        operands.setdefault(equation.primitive.name, set()).update(kinds)
    for name in ("dot_general", "tanh"):
        assert operands[name] == {"bfloat16"}, name
    for name in ("erf", "exp", "rsqrt", "reduce_max", "reduce_sum"):  # gelu, softmax, norms
        assert operands[name] == {"float32"}, name
    # The scores of attention leave their product unrounded.
    products = [e for e in program if e.primitive.name == "dot_general"]
    scores = [e for e in products if e.outvars[0].aval.dtype == jnp.float32]
    assert len(scores) == sum(e.primitive.name == "reduce_max" for e in program)
    wide = equations(lambda b: outputs(case, b, None), batch)
    assert not any(v.aval.dtype == NARROW for e in wide for v in e.outvars)


def test_backward_products_of_layers_are_narrow(case: Any, batch: Any) -> None:
    model, draws = case
    forward, fixed = as_function(model, dtype=NARROW), fixed_arrays(model)

    def loss(params: Any) -> Any:
        return jnp.sum(forward(params, fixed, batch, None, draws))

    program = equations(jax.grad(loss), parameters(model))
    products = [e for e in program if e.primitive.name == "dot_general"]
    # Attention's have two batch axes, and the gradient of its float32 scores is float32.
    layers = [e for e in products if not e.params["dimension_numbers"][1][0]]
    assert len(layers) > 30
    assert {v.aval.dtype.name for e in layers for v in e.invars} == {"bfloat16"}


@pytest.mark.slow
def test_gradients_are_float32_and_close(case: Any, batch: Any, jit: Any) -> None:
    model, draws = case
    params, fixed = parameters(model), fixed_arrays(model)

    def gradient(dtype: Any) -> Any:
        forward = as_function(model, dtype=dtype)

        def loss(params: Any) -> Any:
            return cross_entropy(forward(params, fixed, batch, None, draws), LABELS, WEIGHT)

        return jit(jax.grad(loss))(params)

    narrow, wide = gradient(NARROW), gradient(None)
    assert narrow.keys() == params.keys()
    for path, exact in wide.items():
        assert narrow[path].dtype == jnp.float32, path
        # A bias of the keys has no gradient but rounding.
        if not path.endswith("self.key.bias"):
            error = np.linalg.norm(narrow[path] - exact)
            assert error <= 0.15 * np.linalg.norm(exact), path


@pytest.mark.slow
def test_sums_over_many_tokens_do_not_stand_still(model: Any, jit: Any) -> None:
    """All tokens share one row of the table of types and every bias."""
    rng, rows = np.random.default_rng(3), 256
    batch = {
        "input_ids": rng.integers(0, 61, (rows, 20)).astype(np.int32),
        "attention_mask": np.ones((rows, 20), np.int32),
        "token_type_ids": np.zeros((rows, 20), np.int32),
    }
    labels = rng.integers(0, 3, rows).astype(np.int32)
    # A part for each: the gradients of a few rows, added up in float64.
    forward = as_function(model, dtype=NARROW)

    def loss(params: Any, batch: Any, labels: Any) -> Any:
        return cross_entropy(forward(params, {}, batch), labels, np.ones(len(labels), np.float32))

    slope = jit(jax.grad(loss))
    whole = slope(parameters(model), batch, labels)
    cuts = [slice(i, i + 4) for i in range(0, rows, 4)]
    parts = [
        slope(parameters(model), {n: x[cut] for n, x in batch.items()}, labels[cut]) for cut in cuts
    ]
    for path in whole:
        if "token_type" in path or path.endswith("dense.bias"):
            exact = np.mean([np.asarray(g[path], float) for g in parts], axis=0)
            error = np.linalg.norm(whole[path] - exact) / np.linalg.norm(exact)
            assert error < 0.02, path


def test_steps_lower_the_loss(batch: Any, model: Any) -> None:
    forward, optimizer = as_function(model, dtype=NARROW), optax.adam(1e-3)
    step = make_step(task_loss(forward), optimizer)
    state = initial_state(parameters(model), optimizer)
    rows = {**batch, "labels": LABELS, "weight": WEIGHT}
    for _ in range(12):
        state, logged = step(state, {}, rows, jax.random.key(0))
        assert np.isfinite(logged["loss"])
    assert {x.dtype.name for x in state.params.values()} == {"float32"}
    before, after = (
        float(cross_entropy(forward(params, {}, batch), LABELS, WEIGHT))
        for params in (parameters(model), state.params)
    )
    assert after < 0.7 * before
