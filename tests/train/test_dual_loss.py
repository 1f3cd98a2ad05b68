"""The dual-forward loss against two passes in plain numpy, float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from lpaf_jax.train import Keys, dual_loss

LAYERS, HIDDEN, RANK = 3, 4, 2
STEP = jnp.int32(0)
Params = dict[str, Any]


class Model:
    """Mixed layers with tanh between them and noise on the input; tells what it was given."""

    def __init__(self) -> None:
        self.draws: list[np.ndarray] = []
        self.noise: list[np.ndarray] = []

    def __call__(self, params: Params, masks: Params, batch: Any, key: Any, draws: Any) -> Any:
        noise = jax.random.normal(key, batch["x"].shape)
        jax.debug.callback(self._note, draws, noise)
        x = batch["x"] + noise
        for i in range(LAYERS):
            dense = jnp.where(masks[f"{i}.mask"], params[f"{i}.kernel"], 0.0)
            product = params[f"{i}.a"] @ params[f"{i}.b"]
            x = jnp.tanh(x @ jnp.where(draws[i] > 0, dense, product))
        return x @ params["head"]

    def _note(self, draws: np.ndarray, noise: np.ndarray) -> None:
        self.draws.append(np.asarray(draws))
        self.noise.append(np.asarray(noise))


def one_pass(params: Params, masks: Params, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    for i in range(LAYERS):
        if z[i]:
            x = np.tanh(x @ (masks[f"{i}.mask"] * params[f"{i}.kernel"]))
        else:
            x = np.tanh(x @ params[f"{i}.a"] @ params[f"{i}.b"])
    return x @ params["head"]


def two_passes(
    params: Params, masks: Params, batch: Any, draws: Any, noise: Any, consistency: float
) -> tuple[float, float, float]:
    """Total, task and consistency loss."""
    weight, labels = batch["weight"].astype(float), batch["labels"]
    logits = [one_pass(params, masks, batch["x"] + n, z) for z, n in zip(draws, noise, strict=True)]

    def mean(rows: np.ndarray) -> float:
        return float((weight * rows).sum() / weight.sum())

    rows = np.arange(len(labels))
    task = np.mean([mean(-log_softmax(y, axis=-1)[rows, labels]) for y in logits])
    p, q = (softmax(y, axis=-1) for y in logits)
    gap = mean(0.5 * (rel_entr(p, q) + rel_entr(q, p)).sum(-1))
    return task + consistency * gap, float(task), gap


@pytest.fixture
def params() -> Params:
    rng = np.random.default_rng(0)
    shapes = {"kernel": (HIDDEN, HIDDEN), "a": (HIDDEN, RANK), "b": (RANK, HIDDEN)}
    values = {f"{i}.{n}": rng.normal(size=s) for i in range(LAYERS) for n, s in shapes.items()}
    values["head"] = rng.normal(size=(HIDDEN, 3))
    return {name: value.astype(np.float32) for name, value in values.items()}


@pytest.fixture
def masks() -> Params:
    rng = np.random.default_rng(1)
    return {f"{i}.mask": rng.random((HIDDEN, HIDDEN)) < 0.6 for i in range(LAYERS)}


@pytest.fixture
def batch() -> Params:
    rng = np.random.default_rng(2)
    return {
        "x": rng.normal(size=(5, HIDDEN)).astype(np.float32),
        "labels": np.array([0, 2, 1, 1, 0], np.int32),
        "weight": np.array([1, 1, 1, 1, 0], np.float32),
    }


def keys_of(seed: int) -> Keys:
    return Keys(*jax.random.split(jax.random.key(seed)))


def constant(p: float) -> Any:
    return lambda step: jnp.float32(p) + 0 * step


def test_value_and_gradient(params: Params, masks: Params, batch: Params) -> None:
    model, consistency = Model(), 0.7
    loss = jax.jit(
        jax.value_and_grad(dual_loss(model, constant(0.5), LAYERS, consistency), has_aux=True)
    )
    seen = set()
    for seed in range(3):
        model.draws.clear(), model.noise.clear()
        (value, logged), grads = loss(params, masks, batch, keys_of(seed), STEP)
        jax.effects_barrier()
        assert len(model.draws) == 2
        seen |= {tuple(z) for z in model.draws}
        given = masks, batch, model.draws, model.noise, consistency
        exact = {name: value.astype(float) for name, value in params.items()}
        total, task, gap = two_passes(exact, *given)
        assert float(value) == pytest.approx(total, rel=1e-5)
        assert float(logged["task_loss"]) == pytest.approx(task, rel=1e-5)
        assert float(logged["consistency"]) == pytest.approx(gap, rel=1e-4)
        assert float(logged["p"]) == 0.5
        for name, array in exact.items():
            slope = np.zeros_like(array)
            for index in np.ndindex(array.shape):
                ends = []
                for sign in (1, -1):
                    moved = array.copy()
                    moved[index] += sign * 1e-5
                    ends.append(two_passes({**exact, name: moved}, *given)[0])
                slope[index] = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(grads[name], slope, atol=2e-5, err_msg=name)
    assert len(seen) > 2  # several different draws were met


def test_no_dense_branch_when_p_is_zero(params: Params, masks: Params, batch: Params) -> None:
    model = Model()
    loss = jax.jit(dual_loss(model, constant(0.0), LAYERS, 1.0))
    value, _ = loss(params, masks, batch, keys_of(0), STEP)
    jax.effects_barrier()
    exact = {name: value.astype(float) for name, value in params.items()}
    zeros = [np.zeros(LAYERS)] * 2
    total, _, gap = two_passes(exact, masks, batch, zeros, model.noise, 1.0)
    assert float(value) == pytest.approx(total, rel=1e-5)
    assert gap > 0.01  # the noise of the passes differs

    def factors(params: Params, masks: Params, batch: Any, key: Any, draws: Any) -> Any:
        assert draws.shape == (0,)
        x = batch["x"] + jax.random.normal(key, batch["x"].shape)
        for i in range(LAYERS):
            x = jnp.tanh(x @ (params[f"{i}.a"] @ params[f"{i}.b"]))
        return x @ params["head"]

    # What a stage goes on with once p is 0: the same, without dense matrices and masks.
    alone = {name: w for name, w in params.items() if not name.endswith("kernel")}
    without = jax.jit(dual_loss(factors, constant(0.0), 0, 1.0))
    assert float(without(alone, {}, batch, keys_of(0), STEP)[0]) == pytest.approx(
        float(value), rel=1e-6
    )


def test_probability_follows_the_step(params: Params, masks: Params, batch: Params) -> None:
    model = Model()
    loss = jax.jit(dual_loss(model, lambda step: jnp.where(step < 5, 1.0, 0.0), LAYERS, 1.0))
    for step, expected in ((4, 1.0), (5, 0.0)):
        model.draws.clear()
        _, logged = loss(params, masks, batch, keys_of(0), jnp.int32(step))
        jax.effects_barrier()
        assert float(logged["p"]) == expected
        assert np.array_equal(model.draws, np.full((2, LAYERS), expected))


def test_draws_are_independent(batch: Params) -> None:
    layers, seeds, p = 6, 150, 0.3
    drawn: list[np.ndarray] = []

    def forward(params: Params, masks: Params, batch: Any, key: Any, draws: Any) -> Any:
        # The batch and the key are the same for all layers: a draw can only come from `draws`.
        jax.debug.callback(lambda z: drawn.append(np.asarray(z)), draws)
        return jnp.zeros((5, 3)) + jnp.sum(draws)

    loss = dual_loss(forward, constant(p), layers, 1.0)
    run = jax.jit(lambda keys: loss({}, {}, batch, keys, STEP)[0])
    pairs = []
    for seed in range(seeds):
        drawn.clear()
        run(keys_of(seed))
        jax.effects_barrier()
        pairs.append(np.concatenate(drawn))
    z = np.array(pairs)
    assert z.shape == (seeds, 2 * layers)
    assert set(np.unique(z)) == {0.0, 1.0}
    # Standard errors: 0.037 for a mean, 0.082 for a correlation; five of them.
    assert np.abs(z.mean(0) - p).max() < 0.19
    correlation = np.corrcoef(z.T) - np.eye(2 * layers)
    assert np.abs(correlation).max() < 0.41
