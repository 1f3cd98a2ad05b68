"""Masks of heads and channels while adapters are trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpaf_jax.models import as_function, fixed_arrays, parameters
from lpaf_jax.models.groups import Groups, add_gates, groups_of
from lpaf_jax.models.lora import add_adapters
from lpaf_jax.train.groups import GroupState, left_of, prune_groups
from tests.models.test_groups import make

SCALE, STEPS = 2.0, 40


@pytest.fixture(scope="module")
def given() -> tuple[Any, list[Groups], dict[str, Any]]:
    """A model with adapters that are not 0, and gates, its groups, and its parameters."""
    model = make("llama")
    groups = groups_of(model)
    add_adapters(model, 3, scale=SCALE)
    add_gates(model, groups)
    rng = np.random.default_rng(3)
    params = {
        path: jnp.asarray(0.1 * rng.standard_normal(x.shape), jnp.float32)
        if path.endswith("lora_b")
        else x
        for path, x in parameters(model).items()
    }
    return model, groups, params


def loss_of(model: Any) -> Any:
    ids = np.random.default_rng(1).integers(2, 60, (4, 9)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    forward, fixed = as_function(model), fixed_arrays(model)
    return lambda params: jnp.mean(jnp.sin(forward(params, fixed, batch)))


def made(groups: list[Groups], left: int, **changes: Any) -> Any:
    counts = {each.out: min(left, each.total) for each in groups}
    schedule = {"steps": STEPS, "start": 4, "cooldown": 4, "mask_every": 10}
    return prune_groups(optax.sgd(1e-2), groups, counts, SCALE, **(schedule | changes))


def test_importance_is_the_formula_in_float64(given: Any) -> None:
    model, groups, params = given
    grads = jax.grad(loss_of(model))(params)
    optimizer = made(groups, 1)
    _, state = optimizer.update(grads, optimizer.init(params), params, fixed=fixed_arrays(model))
    wide = {path: np.asarray(x, np.float64) for path, x in params.items()}
    slope = {path: np.asarray(x, np.float64) for path, x in grads.items()}
    for each in groups:
        expected = np.zeros(each.total)
        for path in (*each.into, each.out):
            a, b = wide[f"{path}.lora_a"], wide[f"{path}.lora_b"]
            estimate = a @ slope[f"{path}.lora_b"] + slope[f"{path}.lora_a"] @ b
            weight = np.asarray(fixed_arrays(model)[f"{path}.base.kernel"], np.float64)
            found = np.abs(estimate * (weight + SCALE * a @ b))
            sums = found.sum(1 if path == each.out else 0).reshape(each.total, -1).sum(1)
            expected += sums / np.linalg.norm(sums)
        np.testing.assert_allclose(state.importance[each.out], 0.1 * expected, rtol=1e-4)


def test_importance_is_that_of_the_slopes_of_the_loss(given: Any) -> None:
    """ĝ = A ∇B + ∇A B, both slopes by finite differences."""
    model, groups, params = given
    loss = loss_of(model)
    grads = jax.grad(loss)(params)
    optimizer = made(groups, 1)
    _, state = optimizer.update(grads, optimizer.init(params), params, fixed=fixed_arrays(model))
    each = next(g for g in groups if g.kind == "channels")

    def slope(name: str) -> Any:
        x, step = params[name], 0.02
        moves = step * jnp.eye(x.size).reshape(x.size, *x.shape)
        change = jax.jit(
            lambda moves: jax.lax.map(
                lambda move: loss(params | {name: x + move}) - loss(params | {name: x - move}),
                moves,
            )
        )(moves)
        return change.reshape(x.shape) / (2 * step)

    expected = np.zeros(each.total)
    for path in (*each.into, each.out):
        names = [f"{path}.lora_{side}" for side in "ab"]
        a, b = (np.asarray(params[name], np.float64) for name in names)
        to_a, to_b = (np.asarray(slope(name)) for name in names)
        weight = np.asarray(fixed_arrays(model)[f"{path}.base.kernel"], np.float64)
        found = np.abs((a @ to_b + to_a @ b) * (weight + SCALE * a @ b))
        sums = found.sum(1 if path == each.out else 0).reshape(each.total, -1).sum(1)
        expected += sums / np.linalg.norm(sums)
    np.testing.assert_allclose(state.importance[each.out], 0.1 * expected, rtol=0.02)


def test_a_gate_is_worth_what_the_loss_does_without_it(given: Any) -> None:
    """Against finite differences of the loss."""
    model, groups, params = given
    loss = jax.jit(loss_of(model))
    grads = jax.grad(loss)(params)
    optimizer = made(groups, 1, criterion="gates")
    _, state = optimizer.update(grads, optimizer.init(params), params, fixed=fixed_arrays(model))
    each = next(g for g in groups if g.kind == "heads")
    gate = f"{each.out}.lora_gate"
    for index in range(each.total):
        step = np.zeros(each.total, np.float32)
        step[index] = 0.02
        up, down = (float(loss(params | {gate: params[gate] + sign * step})) for sign in (1, -1))
        expected = 0.1 * abs(up - down) / 0.04
        assert float(state.importance[each.out][index]) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("criterion", ["lora", "gates", "random"])
def test_masks_grow_to_the_number_that_is_asked_for(given: Any, criterion: Any) -> None:
    model, groups, params = given
    optimizer = made(groups, 1, criterion=criterion)
    state = optimizer.init(params)
    slope, fixed = jax.jit(jax.grad(loss_of(model))), fixed_arrays(model)
    move = jax.jit(lambda g, s, p: optimizer.update(g, s, p, fixed=fixed))
    before = {path: np.ones(each, bool) for path, each in ((g.out, g.total) for g in groups)}
    counts = []
    for _ in range(STEPS):
        updates, state = move(slope(params), state, params)
        params = optax.apply_updates(params, updates)
        masks = {path: np.asarray(x) for path, x in left_of((state, ())).items()}
        for path, mask in masks.items():
            assert not (mask & ~before[path]).any(), "what is masked stays masked"
            np.testing.assert_array_equal(params[f"{path}.lora_gate"], mask.astype(np.float32))
        counts.append(sum(int(x.sum()) for x in masks.values()))
        before = masks
    total = sum(each.total for each in groups)
    # The schedule ends at step 36, and masks are looked at every ten steps and there.
    assert counts[8] == total
    assert total > counts[9] > counts[19] > counts[29] > counts[35] == len(groups)
    assert counts[34] > counts[35] == counts[-1]


def test_the_least_important_groups_go_first(given: Any) -> None:
    """Those whose numbers are all 0 are worth nothing by either criterion."""
    model, groups, params = given
    each = next(g for g in groups if g.kind == "channels")
    idle = np.arange(each.total) % 3 == 0
    fixed = dict(fixed_arrays(model))
    given_params = dict(params)
    for path, axis in (*((path, 1) for path in each.into), (each.out, 0)):
        half = "b" if axis else "a"
        for name, tree in ((f"{path}.base.kernel", fixed), (f"{path}.lora_{half}", given_params)):
            values = np.array(tree[name])
            values[(slice(None), idle) if axis else idle] = 0
            tree[name] = jnp.asarray(values)
    optimizer = made(groups, each.total - int(idle.sum()), start=0, mask_every=1)
    state: GroupState = optimizer.init(given_params)
    grads = jax.grad(loss_of(model))(given_params)
    for _ in range(STEPS):
        _, state = optimizer.update(grads, state, given_params, fixed=fixed)
    np.testing.assert_array_equal(state.masks[each.out], ~idle)


def test_an_unknown_criterion_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="choose one of lora, gates"):
        made(given[1], 1, criterion="luck")
