"""A model as a pure function: the same numbers, the draws, the gradients, one trace."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpaf_jax.models import (
    Linear,
    as_function,
    fixed_arrays,
    layer_at,
    mixed_paths,
    parameters,
    replace_layer,
    set_parameters,
)
from lpaf_jax.models.layers import Mask

BLOCK = "bert.encoder.layer.0"
LAYERS = [
    f"{BLOCK}.attention.output.dense",
    f"{BLOCK}.attention.self.key",
    f"{BLOCK}.attention.self.query",
    f"{BLOCK}.attention.self.value",
    f"{BLOCK}.intermediate.dense",
    f"{BLOCK}.output.dense",
]
# One with both kinds, and its complement: every layer is dense in one and factors in the other.
DRAWS = jnp.asarray([[1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1]], jnp.float32)


@pytest.fixture(scope="module")
def forward(mixed, jit):
    return jit(as_function(mixed))


@pytest.fixture(scope="module")
def step(mixed, jit):
    """One of gradient descent over two draws at once, as mixed-rank fine-tuning does.

    `step(params, masks, batch, draws) -> (gradients, new params)`; may be traced once.
    """
    chex.clear_trace_counter()
    function = as_function(mixed)

    @chex.assert_max_traces(n=1)
    def loss(params, masks, batch, draws):
        logits = jax.vmap(lambda z: function(params, masks, batch, draws=z))(draws)
        return jnp.sum(jnp.square(logits))

    @jit
    def step(params, masks, batch, draws):
        gradients = jax.grad(loss)(params, masks, batch, draws)
        return gradients, {path: p - 0.01 * gradients[path] for path, p in params.items()}

    return step


def fixed(mixed, draw):
    """The model `mixed` is at one draw, made of plain dense layers by hand."""
    model = nnx.clone(mixed)
    for path, z in zip(LAYERS, np.asarray(draw), strict=True):
        layer = layer_at(mixed, path)
        kernel = np.where(layer.mask[...], layer.kernel[...], 0)
        product = np.asarray(layer.a[...]) @ np.asarray(layer.b[...])
        replace_layer(model, path, Linear(jnp.asarray(kernel if z else product), layer.bias[...]))
    return model


def test_paths_of_mixed_layers(mixed, model):
    assert mixed_paths(mixed) == LAYERS
    assert mixed_paths(model) == []


@pytest.mark.parametrize("name", ["model", "factorized"])
def test_the_function_equals_the_module(name, batch, evaluate, jit, request):
    model = request.getfixturevalue(name)
    forward = jit(as_function(model))
    np.testing.assert_allclose(
        forward(parameters(model), {}, batch), evaluate(model, batch), atol=1e-6
    )


def test_the_function_reads_its_arguments_alone(mixed, forward, batch, step):
    """A step that closed over the arrays of the model would train and never change."""
    params, fixed_masks = parameters(mixed), fixed_arrays(mixed)
    logits = forward(params, fixed_masks, batch, draws=jnp.ones(6))
    none = {path: jnp.zeros_like(array) for path, array in params.items()}
    assert not forward(none, fixed_masks, batch, draws=jnp.ones(6)).any()
    assert logits.any()
    closed = {path: jnp.zeros_like(array) for path, array in fixed_masks.items()}
    gradients, _ = step(params, closed, batch, DRAWS)
    assert not any(np.any(gradients[f"{path}.kernel"]) for path in LAYERS)


@pytest.mark.parametrize("draw", [jnp.ones(6), jnp.zeros(6), *DRAWS], ids=["1", "0", "a", "b"])
def test_a_draw_gives_the_masked_kernels_or_the_products(mixed, forward, batch, evaluate, draw):
    logits = forward(parameters(mixed), fixed_arrays(mixed), batch, draws=draw)
    np.testing.assert_allclose(logits, evaluate(fixed(mixed, draw), batch), atol=1e-5)


def test_no_draw_takes_the_factors(mixed, forward, batch):
    params, fixed_masks = parameters(mixed), fixed_arrays(mixed)
    np.testing.assert_allclose(
        forward(params, fixed_masks, batch),
        forward(params, fixed_masks, batch, draws=jnp.zeros(6)),
        atol=1e-6,
    )


def test_two_draws_under_vmap_equal_two_calls(mixed, forward, batch, jit):
    params, fixed_masks = parameters(mixed), fixed_arrays(mixed)
    two = jit(jax.vmap(as_function(mixed), in_axes=(None, None, None, None, 0)))
    both = two(params, fixed_masks, batch, None, DRAWS)
    assert not np.allclose(both[0], both[1], atol=1e-2)
    for logits, draw in zip(both, DRAWS, strict=True):
        alone = forward(params, fixed_masks, batch, draws=draw)
        np.testing.assert_allclose(logits, alone, atol=1e-5)


def test_gradients_reach_kernels_and_factors_but_no_masked_weight(mixed, batch, step):
    """With a row of padding alone in the batch, whose gradient must not become NaN."""
    batch = {**batch, "attention_mask": batch["attention_mask"].at[2].set(0)}
    gradients, _ = step(parameters(mixed), fixed_arrays(mixed), batch, DRAWS)
    assert set(gradients) == set(parameters(mixed))
    for path, g in gradients.items():
        assert np.isfinite(g).all(), path
        # A bias of the keys adds the same to all scores of a query, and softmax does not see it.
        if not path.endswith("self.key.bias"):
            assert np.any(g), path
    for path in LAYERS:
        mask = np.asarray(fixed_arrays(mixed)[f"{path}.mask"])
        g = np.asarray(gradients[f"{path}.kernel"])
        assert not g[~mask].any(), path
        assert (g[mask] != 0).mean() > 0.9, path


def test_a_step_is_traced_once(mixed, batch, step):
    params = parameters(mixed)
    for i in range(3):
        inputs = {**batch, "input_ids": batch["input_ids"] + i}
        _, params = step(params, fixed_arrays(mixed), inputs, DRAWS[:: (-1) ** i])
    copy = nnx.clone(mixed)
    set_parameters(copy, params)
    step(parameters(copy), fixed_arrays(copy), batch, DRAWS)


def test_parameters_go_out_and_in(model, factorized):
    params = parameters(model)
    assert params["bert.embeddings.LayerNorm.weight"].shape == (32,)
    changed = {"classifier.bias": np.array([1.0, 2.0, 3.0]), "unknown": jnp.ones(3)}
    set_parameters(model, changed)
    after = parameters(model)
    for path, array in after.items():
        assert isinstance(array, jax.Array), path
        assert array.dtype == jnp.float32, path
    np.testing.assert_array_equal(after.pop("classifier.bias"), [1, 2, 3])
    for path, array in after.items():
        np.testing.assert_array_equal(array, params[path])
    with pytest.raises(ValueError, match=r"classifier.bias: \(1,\) does not fit \(3,\)"):
        set_parameters(model, {"classifier.bias": jnp.ones(1)})
    assert {p.rpartition(".")[2] for p in parameters(factorized) if "query" in p} == {
        "a",
        "b",
        "bias",
    }


def test_masks_are_no_parameters(mixed, model):
    assert set(fixed_arrays(mixed)) == {f"{path}.mask" for path in LAYERS}
    assert not any(path.endswith((".mask", ".draw")) for path in parameters(mixed))
    assert fixed_arrays(model) == {}
    assert all(isinstance(layer_at(mixed, path).mask, Mask) for path in LAYERS)


def test_a_layer_in_a_list_can_be_found_and_replaced(model):
    path = "bert.encoder.layer.1.output.dense"
    old = layer_at(model, path)
    assert old is model.bert.encoder.layer[1].output.dense
    new = Linear(jnp.zeros((48, 32)), jnp.zeros(32))
    replace_layer(model, path, new)
    assert model.bert.encoder.layer[1].output.dense is new
    assert model.bert.encoder.layer[0].output.dense is not new
    assert not parameters(model)[f"{path}.kernel"].any()
