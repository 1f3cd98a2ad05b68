"""Pruning against a numpy float64 re-implementation of its definition."""

import re
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpaf_jax.train import cubic_sparsity, prune
from lpaf_jax.train.select import keep_largest

Arrays = dict[str, np.ndarray]

RATE = 0.05
COMPRESSIBLE = {"a": True, "b": True, "c": False}


@pytest.fixture
def start() -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 5), "b": (3, 2), "c": (4,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def target(start: Arrays) -> Arrays:
    """Where the loss `½ Σ (w − target)²` pulls: beyond, towards and through zero."""
    rng = np.random.default_rng(1)
    return {name: (w * rng.normal(0.5, 2, w.shape)).astype(np.float32) for name, w in start.items()}


def run(optimizer: Any, start: Arrays, target: Arrays, steps: int) -> tuple[Any, Any]:
    """Parameters and optimiser state after each step, stacked."""

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        params, state = carry
        grads = jax.tree.map(lambda p, t: p - t, params, target)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    params = jax.tree.map(jnp.asarray, start)
    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[1])
    return jax.tree.map(np.asarray, scan((params, optimizer.init(params))))


def top(scores: Arrays, share: float) -> Arrays:
    """True on the largest `share` of all scores together; the earlier of equal ones."""
    flat = np.concatenate([s.ravel() for s in scores.values()])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[: round(share * flat.size)]] = True
    cuts = np.cumsum([s.size for s in scores.values()])[:-1]
    parts = zip(scores.items(), np.split(mask, cuts), strict=True)
    return {name: part.reshape(s.shape) for (name, s), part in parts}


def reference(
    start: Arrays,
    target: Arrays,
    share: Callable[[int], float],
    updates_masks: Callable[[int], bool],
    steps: int,
    *,
    criterion: str = "sensitivity",
    scope: str = "global",
    decay: float = 1.0,
) -> list[dict[str, Arrays]]:
    """W, S, M and M ⊙ W after each step of plain gradient descent, for the matrices a and b."""
    w = {name: start[name].astype(float) for name in "ab"}
    s = {name: np.zeros_like(w[name]) for name in "ab"}
    m = {name: np.ones(w[name].shape, bool) for name in "ab"}
    trace = []
    for t in range(1, steps + 1):
        g = {name: m[name] * w[name] - target[name] for name in "ab"}
        gains = {name: -g[name] * w[name] for name in "ab"}
        if criterion == "sensitivity":
            gains = {name: np.abs(gain) for name, gain in gains.items()}
        s = {name: decay * s[name] + gains[name] for name in "ab"}
        w = {name: w[name] - RATE * g[name] for name in "ab"}
        if criterion == "magnitude":
            s = {name: np.abs(w[name]) for name in "ab"}
        if updates_masks(t):
            groups = [s] if scope == "global" else [{name: s[name]} for name in "ab"]
            m = {name: mask for group in groups for name, mask in top(group, share(t)).items()}
        trace.append({"w": w, "s": s, "m": m, "params": {n: m[n] * w[n] for n in "ab"}})
    return trace


@pytest.mark.parametrize(
    "choices",
    [
        {"mask_every": 4},
        {"mask_every": 4, "scope": "matrix"},
        {"mask_every": 1, "criterion": "magnitude"},
        {"mask_every": 7, "decay": 0.8},
        {"mask_every": 4, "criterion": "first-order"},
        {"mask_every": 4, "decay": 0.8, "criterion": "first-order"},
    ],
    ids=str,
)
def test_is_the_definition(start: Arrays, target: Arrays, choices: dict[str, Any]) -> None:
    T, t_i, t_f, v_f = 40, 5, 9, 0.3

    def share(t: int) -> float:
        left = min(max((T - t_f - t) / (T - t_f - t_i), 0.0), 1.0)
        return v_f + (1 - v_f) * left**3

    every = choices["mask_every"]
    expected = reference(
        start,
        target,
        share,
        lambda t: t % every == 0 or t == T - t_f,
        T,
        **{name: value for name, value in choices.items() if name != "mask_every"},
    )
    kept = cubic_sparsity(T, start=t_i, cooldown=t_f, final=v_f)
    params, state = run(prune(optax.sgd(RATE), kept, COMPRESSIBLE, **choices), start, target, T)

    for t, values in enumerate(expected):
        for name in "ab":
            np.testing.assert_array_equal(state.masks[name][t], values["m"][name], f"step {t + 1}")
            np.testing.assert_allclose(state.dense[name][t], values["w"][name], atol=1e-5)
            np.testing.assert_allclose(state.scores[name][t], values["s"][name], atol=2e-5)
            np.testing.assert_allclose(params[name][t], values["params"][name], atol=1e-5)
            assert not params[name][t][~values["m"][name]].any()  # exactly zero, not nearly
    # The case is worth its name: masks fall, and not along a nested sequence.
    masks = [np.concatenate([v["m"]["a"].ravel(), v["m"]["b"].ravel()]) for v in expected]
    assert masks[-1].mean() == pytest.approx(v_f, abs=0.05)
    if choices.get("criterion") == "first-order":
        assert any((later & ~now).any() for now, later in pairwise(masks))


def test_parameters_are_the_masked_weights(start: Arrays, target: Arrays) -> None:
    kept = cubic_sparsity(30, start=0, cooldown=5, final=0.2)
    params, state = run(prune(optax.adam(0.1), kept, COMPRESSIBLE, mask_every=3), start, target, 30)
    for name in "ab":
        masked = np.where(state.masks[name], state.dense[name], 0)
        assert not params[name][~state.masks[name]].any()
        # Adding an update rounds, by what the larger of the old and the new weight rounds by.
        np.testing.assert_allclose(params[name], masked, atol=1e-7, rtol=1e-6)


def test_a_masked_weight_moves_and_comes_back() -> None:
    # Two weights, one kept; worked out by hand, with gradients that are given.
    optimizer = prune(
        optax.sgd(0.1),
        lambda t: jnp.where(t < 1, 1.0, 0.5),
        {"w": True},
        criterion="first-order",
        mask_every=1,
    )
    params = {"w": jnp.array([[2.0, 1.0]])}
    state = optimizer.init(params)

    updates, state = optimizer.update({"w": jnp.array([[-1.0, 0.5]])}, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.scores["w"], [[2.0, -0.5]], rtol=1e-6)  # −g ⊙ W
    np.testing.assert_allclose(state.dense["w"], [[2.1, 0.95]], rtol=1e-6)
    np.testing.assert_allclose(params["w"], [[2.1, 0.0]], rtol=1e-6)

    updates, state = optimizer.update({"w": jnp.array([[1.0, -4.0]])}, state, params)
    params = optax.apply_updates(params, updates)
    # The gradient of the masked weight reached its score (with the dense 0.95) and its value.
    np.testing.assert_allclose(state.scores["w"], [[-0.1, 3.3]], rtol=1e-5)
    np.testing.assert_allclose(state.dense["w"], [[2.0, 1.35]], rtol=1e-6)
    np.testing.assert_allclose(params["w"], [[0.0, 1.35]], rtol=1e-6)


@pytest.mark.parametrize(
    ("mask_every", "cooldown", "scope"),
    [(50, 0, "global"), (10, 3, "global"), (3, 0, "global"), (50, 0, "matrix")],
)
def test_final_count_is_exact_however_rarely_masks_change(
    start: Arrays, target: Arrays, mask_every: int, cooldown: int, scope: Any
) -> None:
    T, share = 11, 0.3
    optimizer = prune(
        optax.sgd(RATE),
        cubic_sparsity(T, start=2, cooldown=cooldown, final=share),
        COMPRESSIBLE,
        mask_every=mask_every,
        scope=scope,
    )
    params, state = run(optimizer, start, target, T)
    counts = {name: int(state.masks[name][-1].sum()) for name in "ab"}
    if scope == "global":
        assert sum(counts.values()) == round(share * 26)
    else:
        assert counts == {"a": round(share * 20), "b": round(share * 6)}
    assert sum(np.count_nonzero(params[name][-1]) for name in "ab") == sum(counts.values())


def test_masks_change_only_when_due(start: Arrays, target: Arrays) -> None:
    kept = cubic_sparsity(20, start=0, cooldown=4, final=0.2)
    _, state = run(prune(optax.sgd(RATE), kept, COMPRESSIBLE, mask_every=5), start, target, 20)
    changed = [
        t + 1
        for t in range(1, 20)
        if any((state.masks[name][t] != state.masks[name][t - 1]).any() for name in "ab")
    ]
    assert set(changed) <= {5, 10, 15, 16, 20}
    assert {5, 10} <= set(changed)


def test_outside_of_jit_the_masks_are_compiled_once(
    start: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []

    def counted(*given: Any) -> Any:
        traced.append(given)
        return keep_largest(*given)

    # The package's name `prune` is the function's.
    monkeypatch.setattr(sys.modules[prune.__module__], "keep_largest", counted)
    optimizer = prune(optax.sgd(RATE), 0.5, COMPRESSIBLE, mask_every=2)
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert sum(np.count_nonzero(params[name]) for name in "ab") == 13
    assert len(traced) <= 1  # or never: what another test compiled may serve


def test_the_rest_of_the_parameters_is_left_to_the_inner_optimiser(
    start: Arrays, target: Arrays
) -> None:
    kept = cubic_sparsity(10, start=0, cooldown=2, final=0.2)
    inner = optax.adamw(0.1, weight_decay=0.3)
    params, state = run(prune(inner, kept, COMPRESSIBLE, mask_every=2), start, target, 10)
    alone, _ = run(inner, {"c": start["c"]}, {"c": target["c"]}, 10)
    np.testing.assert_allclose(params["c"], alone["c"], rtol=1e-5, atol=1e-7)
    # Nothing is held for what is never pruned.
    assert jax.tree.leaves([tree["c"] for tree in (state.dense, state.scores, state.masks)]) == []


def test_weight_decay_sees_the_dense_weights(start: Arrays) -> None:
    # No gradient: only decay moves W, by 1 − 0.1 · 0.5 a step, masked or not.
    optimizer = prune(
        optax.adamw(0.1, weight_decay=0.5), lambda t: jnp.where(t < 1, 1.0, 0.5), COMPRESSIBLE
    )
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(12):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert not np.asarray(state.masks["b"]).all()
    for name in "ab":
        np.testing.assert_allclose(state.dense[name], start[name] * 0.95**12, rtol=1e-5)


@pytest.mark.parametrize(
    "kept", [0.5, np.float32(0.5), lambda t: 0.5], ids=["own", "numpy", "schedule"]
)
def test_one_share_for_all_steps_holds_from_the_first(
    start: Arrays, target: Arrays, kept: Any
) -> None:
    _, state = run(prune(optax.sgd(RATE), kept, COMPRESSIBLE, mask_every=50), start, target, 3)
    for t in range(3):
        assert sum(state.masks[name][t].sum() for name in "ab") == 13


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"kept": 1.5}, "prune: kept is 1.5, but must be in [0, 1]"),
        ({"criterion": "foo"}, "criterion is 'foo': choose one of first-order, sensitivity, mag"),
        ({"scope": "foo"}, "scope is 'foo': choose one of global, matrix"),
        ({"mask_every": 0}, "mask_every is 0, but must be at least 1"),
        ({"decay": 1.5}, "decay is 1.5, but must be in (0, 1]"),
        ({"decay": 0.0}, "decay is 0.0"),
    ],
)
def test_what_cannot_be_is_told_at_once(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        prune(**{"inner": optax.sgd(RATE), "kept": 0.5, "compressible": COMPRESSIBLE} | choices)


def test_a_share_is_a_schedule_or_a_number() -> None:
    kept: Any = "half"
    with pytest.raises(TypeError, match="kept is 'half', but must be a schedule or a number"):
        prune(optax.sgd(RATE), kept, COMPRESSIBLE)


def test_parameters_must_be_given(start: Arrays) -> None:
    optimizer = prune(optax.sgd(RATE), lambda t: 1.0 + 0 * t, COMPRESSIBLE)
    params = jax.tree.map(jnp.asarray, start)
    with pytest.raises(ValueError, match="with the parameters"):
        optimizer.update(params, optimizer.init(params))


def test_more_weights_than_can_be_counted() -> None:
    def start(scope: Any, **shapes: tuple[int, ...]) -> Any:
        optimizer = prune(
            optax.sgd(RATE),
            lambda t: 1.0 + 0 * t,
            lambda params: jax.tree.map(lambda _: True, params),
            scope=scope,
        )
        params = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
        return jax.eval_shape(optimizer.init, params)

    most = (2**31 - 2**16, 1)
    start("global", a=most, b=(2**16 - 1,))
    start("matrix", a=most, b=(2**16,))
    with pytest.raises(ValueError, match=r'2,147,483,648 weights .* use scope="matrix"'):
        start("global", a=most, b=(2**16,))
    for scope in ("global", "matrix"):
        with pytest.raises(ValueError, match="split the largest matrix"):
            start(scope, a=(2**16, 2**15))
