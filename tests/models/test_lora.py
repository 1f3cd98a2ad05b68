"""Adapters: what they start from, what is trained, and that merging them changes no answer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors import Heads, SlicedLinear
from lpaf_jax.linalg import Nf4, nearest_kronecker
from lpaf_jax.models import (
    Linear,
    as_function,
    compressible_layers,
    fixed_arrays,
    layer_at,
    parameters,
    replace_layer,
    set_parameters,
)
from lpaf_jax.models.layers import Frozen
from lpaf_jax.models.lora import (
    LoraLinear,
    Update,
    adapters,
    add_adapters,
    merge_adapters,
    put_adapters,
    train_half,
    updates,
)

LAYERS = 2 * 6
RANK, SCALE = 3, 0.7


def trained(model: Any) -> None:
    """As if all adapters had been trained."""
    drawn = {
        path: 0.2 * jax.random.normal(jax.random.key(i), x.shape)
        for i, (path, x) in enumerate(parameters(model).items())
    }
    set_parameters(model, drawn)


def answers(model: Any, batch: Any, **options: Any) -> np.ndarray:
    return np.asarray(as_function(model, **options)(parameters(model), fixed_arrays(model), batch))


def test_a_dense_model_starts_as_it_was_and_merges_exactly(model, batch) -> None:
    dense, before = answers(model, batch), parameters(model)
    add_adapters(model, RANK, scale=SCALE)
    assert len(parameters(model)) == 2 * LAYERS
    assert all(path.rpartition(".")[2] in ("lora_a", "lora_b") for path in parameters(model))
    assert len(fixed_arrays(model)) == len(before)
    np.testing.assert_array_equal(answers(model, batch), dense)
    trained(model)
    added = {path: layer.lora_a[...] @ layer.lora_b[...] for path, layer in adapters(model).items()}
    expected = answers(model, batch)
    assert np.abs(expected - dense).max() > 0.1
    merge_adapters(model)
    assert set(parameters(model)) == set(before)
    assert not fixed_arrays(model)
    np.testing.assert_allclose(answers(model, batch), expected, atol=2e-5)
    for path, change in added.items():
        kernel = before[f"{path}.kernel"] + SCALE * change
        np.testing.assert_allclose(parameters(model)[f"{path}.kernel"], kernel, atol=1e-6)


def test_factors_keep_their_ranks(factorized, batch) -> None:
    before = {path: x.shape for path, x in parameters(factorized).items()}
    add_adapters(factorized, RANK, scale=SCALE)
    assert len(adapters(factorized)) == 2 * LAYERS
    trained(factorized)
    expected = answers(factorized, batch)
    merge_adapters(factorized)
    assert {path: x.shape for path, x in parameters(factorized).items()} == before
    np.testing.assert_allclose(answers(factorized, batch), expected, atol=2e-5)


@pytest.mark.parametrize("side", ["inputs", "outputs", None])
def test_a_layer_of_fewer_channels(side: str | None) -> None:
    random = np.random.default_rng(0)
    # Four heads of three channels, of which 2, 0, 3 and 1 are left.
    heads = None if side is None else Heads(side, 3, (2, 0, 3, 1))
    m, n = {"inputs": (6, 5), "outputs": (5, 6), None: (5, 6)}[side]
    w, bias = (jnp.asarray(random.normal(size=size), jnp.float32) for size in ((m, n), (n,)))
    model = nnx.Module()
    model.layer = SlicedLinear(w, bias, heads)
    a, b = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((m, 2), (2, n)))
    x = jnp.asarray(random.normal(size=(4, 12 if side == "inputs" else m)), jnp.float32)
    put_adapters(model, {"layer": Update(a, b, SCALE)})
    found = model.layer(x)
    expected = SlicedLinear(w + SCALE * a @ b, bias, heads)(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    merge_adapters(model)
    np.testing.assert_allclose(model.layer(x), expected, atol=1e-5)


def test_one_factor_alone_may_have_one(factorized, batch) -> None:
    path = compressible_layers(parameters(factorized))[0]
    m, rank = layer_at(factorized, path).a.shape
    before, b = answers(factorized, batch), layer_at(factorized, path).b[...]
    put_adapters(factorized, {f"{path}.down": Update(jnp.ones((m, 1)), jnp.ones((1, rank)), 0.1)})
    expected = answers(factorized, batch)
    assert np.abs(expected - before).max() > 1e-3
    merge_adapters(factorized)
    np.testing.assert_array_equal(layer_at(factorized, path).b[...], b)
    np.testing.assert_allclose(answers(factorized, batch), expected, atol=2e-5)


@pytest.mark.parametrize("half", ["up", "down"])
def test_adapters_of_one_half_rest(factorized, batch, half: str) -> None:
    add_adapters(factorized, RANK, scale=SCALE)
    trained(factorized)
    expected, every = answers(factorized, batch), set(updates(factorized))
    train_half(factorized, half)
    names = {path.rpartition(".")[0] for path in parameters(factorized)}
    assert names == {path for path in every if path.endswith(half)}
    np.testing.assert_array_equal(answers(factorized, batch), expected)
    assert set(updates(factorized)) == every


def test_the_adapter_of_a_dense_layer_never_rests(model) -> None:
    add_adapters(model, RANK, scale=SCALE)
    before = set(parameters(model))
    train_half(model, "up")
    assert set(parameters(model)) == before


def test_the_gradient_is_that_of_the_merged_matrix(model, batch, jit) -> None:
    """`∇A = s G Bᵀ` and `∇B = s Aᵀ G`, G of W as a model without adapters has it."""
    plain = nnx.clone(model)
    add_adapters(model, RANK, scale=SCALE)
    trained(model)
    merged = nnx.clone(model)
    merge_adapters(merged)

    def loss(forward: Any, params: Any, fixed: Any) -> Any:
        return jnp.sum(jnp.square(forward(params, fixed, batch)))

    found = jax.grad(lambda p: loss(as_function(model), p, fixed_arrays(model)))(parameters(model))
    dense = jax.grad(lambda p: loss(as_function(plain), p, {}))(parameters(merged))
    for path, layer in adapters(model).items():
        g, a, b = dense[f"{path}.kernel"], layer.lora_a[...], layer.lora_b[...]
        size = float(jnp.abs(g).max())
        np.testing.assert_allclose(found[f"{path}.lora_a"], SCALE * g @ b.T, atol=1e-4 * size)
        np.testing.assert_allclose(found[f"{path}.lora_b"], SCALE * a.T @ g, atol=1e-4 * size)


def test_matrices_may_be_held_in_bfloat16(model, batch) -> None:
    """Where a step computes in it, they are what it would round them to."""
    wide, narrow = model, nnx.clone(model)
    add_adapters(wide, RANK)
    add_adapters(narrow, RANK, narrow=jnp.bfloat16)
    kinds = {x.ndim: x.dtype for x in fixed_arrays(narrow).values()}
    assert kinds == {1: jnp.float32, 2: jnp.bfloat16}
    for one in (wide, narrow):
        trained(one)
    half = {"dtype": jnp.bfloat16}
    np.testing.assert_array_equal(answers(narrow, batch, **half), answers(wide, batch, **half))
    merge_adapters(narrow)
    assert {x.dtype for x in parameters(narrow).values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("kind", ["dense", pytest.param("factors", marks=pytest.mark.slow)])
def test_matrices_may_be_held_in_four_bits(model, factorized, batch, jit, kind: str) -> None:
    """It computes what a model of the rounded matrices does, and so do its gradients."""
    held = model if kind == "dense" else factorized
    add_adapters(held, RANK, four_bits=True)
    trained(held)
    codes = {path: x for path, x in fixed_arrays(held).items() if isinstance(x, Nf4)}
    assert len(codes) == len(adapters(held))
    rounded = nnx.clone(held)
    for layer in adapters(rounded).values():
        layer.base.kernel = Frozen(layer.base.kernel[...])
    assert not any(isinstance(x, Nf4) for x in fixed_arrays(rounded).values())

    def loss(one: Any) -> Any:
        forward, fixed = as_function(one), fixed_arrays(one)
        return jax.value_and_grad(lambda p: jnp.sum(jnp.square(forward(p, fixed, batch))))(
            parameters(one)
        )

    (value, found), (expected, of) = loss(held), loss(rounded)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for path, x in of.items():
        np.testing.assert_allclose(found[path], x, atol=1e-4 * float(jnp.abs(x).max()) + 1e-7)
    half, expected = (answers(one, batch, dtype=jnp.bfloat16) for one in (held, rounded))
    np.testing.assert_allclose(half, expected, atol=0.05 * np.abs(expected).max())


def test_what_takes_no_adapter_is_named(model) -> None:
    from lpaf_jax.factorization.swap import layer_of

    path = compressible_layers(parameters(model))[0]
    dense = layer_at(model, path)
    product = nearest_kronecker(dense.kernel[...], ((4, 4), (8, 8)), 2)
    replace_layer(model, path, layer_of(product, dense.bias[...]))
    with pytest.raises(LpafError, match=rf"{path} is a Kronecker.*cannot have an adapter"):
        add_adapters(model, RANK)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(model, rank: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        add_adapters(model, rank)


def test_seeds_draw_other_adapters_and_layers_differ(model) -> None:
    first = nnx.clone(model)
    add_adapters(first, RANK, seed=0)
    add_adapters(model, RANK, seed=1)
    path = "bert.encoder.layer.0.attention.self.query"
    drawn = [np.asarray(adapters(each)[path].lora_a[...]) for each in (first, model)]
    drawn.append(np.asarray(adapters(first)[path.replace("query", "key")].lora_a[...]))
    for i, x in enumerate(drawn):
        assert np.abs(x).max() <= 1 / np.sqrt(32)
        assert not any(np.array_equal(x, other) for other in drawn[:i])
    assert isinstance(layer_at(first, path), LoraLinear)
    assert isinstance(adapters(first)[path].base, Linear)
