"""The three linear layers against numpy in float64, and the statistics of dropout."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from lpaf_jax.linalg import LowRank
from lpaf_jax.models import Linear, LowRankLinear, MixedLinear
from lpaf_jax.models.layers import ACTIVATIONS, Embedding, LayerNorm, dropout, gelu

M, N, K = 6, 5, 2


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, M), "w": (M, N), "a": (M, K), "b": (K, N), "c": (N,)}
    found = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return {**found, "mask": rng.random((M, N)) < 0.5}


def test_activations_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2FN

    x = np.linspace(-6, 6, 101, dtype=np.float32)
    for name, function in ACTIVATIONS.items():
        expected = ACT2FN[name](torch.tensor(x)).numpy()
        np.testing.assert_allclose(function(jnp.asarray(x)), expected, atol=2e-6, err_msg=name)


def single(array):
    return jnp.asarray(array, jnp.float32)


@pytest.fixture
def mixed(arrays):
    w, a, b, c = (single(arrays[name]) for name in "wabc")
    return MixedLinear(w, jnp.asarray(arrays["mask"]), LowRank(a, b), c)


def drawn(layer, z, x):
    layer.draw[...] = jnp.asarray(z, jnp.float32)
    return layer(single(x))


def test_dense(arrays):
    expected = arrays["x"] @ arrays["w"] + arrays["c"]
    layer = Linear(single(arrays["w"]), single(arrays["c"]))
    np.testing.assert_allclose(layer(single(arrays["x"])), expected, atol=1e-5)


def test_low_rank(arrays):
    expected = arrays["x"] @ arrays["a"] @ arrays["b"] + arrays["c"]
    factors = LowRank(single(arrays["a"]), single(arrays["b"]))
    layer = LowRankLinear(factors, single(arrays["c"]))
    np.testing.assert_allclose(layer(single(arrays["x"])), expected, atol=1e-5)


def test_mixed_draws_the_masked_kernel_or_the_product(arrays, mixed):
    sparse = arrays["x"] @ (arrays["w"] * arrays["mask"]) + arrays["c"]
    product = arrays["x"] @ arrays["a"] @ arrays["b"] + arrays["c"]
    np.testing.assert_allclose(drawn(mixed, 1, arrays["x"]), sparse, atol=1e-5)
    np.testing.assert_allclose(drawn(mixed, 0, arrays["x"]), product, atol=1e-5)


def test_mixed_starts_at_the_product(arrays, mixed):
    product = arrays["x"] @ arrays["a"] @ arrays["b"] + arrays["c"]
    np.testing.assert_allclose(mixed(single(arrays["x"])), product, atol=1e-5)


@pytest.mark.parametrize("z", [0, 1])
def test_mixed_sends_the_gradient_where_the_draw_went(arrays, z):
    w, a, b, c, x = (single(arrays[name]) for name in "wabcx")

    def loss(w, a, b, x):
        layer = MixedLinear(w, jnp.asarray(arrays["mask"]), LowRank(a, b), c)
        return drawn(layer, z, x).sum()

    gradients = jax.grad(loss, (0, 1, 2, 3))(w, a, b, x)
    # d sum(x K) / dK, K the kernel that was drawn.
    to_kernel = np.repeat(arrays["x"].sum((0, 1))[:, None], N, 1)
    kernel = arrays["w"] * arrays["mask"] if z else arrays["a"] @ arrays["b"]
    expected = (
        z * to_kernel * arrays["mask"],
        (1 - z) * to_kernel @ arrays["b"].T,
        (1 - z) * arrays["a"].T @ to_kernel,
        np.broadcast_to(kernel.sum(1), arrays["x"].shape),
    )
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not np.asarray(gradients[0])[~arrays["mask"]].any()


@pytest.mark.parametrize("own_inputs", [False, True])
def test_mixed_gradients_of_two_draws_at_once(arrays, own_inputs):
    """The first layer sees one input under both draws, every further one an input for each."""
    mask = jnp.asarray(arrays["mask"])
    w, a, b, c, x = (single(arrays[name]) for name in "wabcx")

    def loss(w, a, b, x, z):
        layer = MixedLinear(w, mask, LowRank(a, b), c)
        layer.draw.set_value(z)
        return jnp.square(layer(x)).sum()

    gradient = jax.grad(loss, (0, 1, 2, 3))
    draws = jnp.asarray([1.0, 0.0])
    inputs = jnp.stack([x, 2 * x]) if own_inputs else x
    axes = (None, None, None, 0 if own_inputs else None, 0)
    both = jax.vmap(gradient, axes)(w, a, b, inputs, draws)
    for i, z in enumerate(draws):
        alone = gradient(w, a, b, inputs[i] if own_inputs else x, z)
        for found, wanted in zip(both, alone, strict=True):
            np.testing.assert_allclose(found[i], wanted, rtol=1e-5, atol=1e-5)


def test_mixed_without_a_mask_draws_the_whole_kernel(arrays):
    w, a, b, c = (single(arrays[name]) for name in "wabc")
    layer = MixedLinear(w, None, LowRank(a, b), c)
    expected = arrays["x"] @ arrays["w"] + arrays["c"]
    np.testing.assert_allclose(drawn(layer, 1, arrays["x"]), expected, atol=1e-5)


def test_embedding_takes_rows():
    table = single(np.arange(12).reshape(4, 3))
    index = jnp.asarray([[3, 0], [1, 1]])
    np.testing.assert_array_equal(Embedding(table)(index), np.asarray(table)[np.asarray(index)])


def test_layer_norm_far_from_zero():
    """A mean of 3000 is where `E[x²] − E[x]²` in float32 would lose the variance."""
    x = single(np.random.default_rng(0).normal(3000, 1, (4, 64)))
    x64 = np.asarray(x, np.float64)
    weight, bias = np.linspace(0.5, 2, 64), np.linspace(-1, 1, 64)
    normal = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-5)
    layer = LayerNorm(single(weight), single(bias), 1e-5)
    np.testing.assert_allclose(layer(x), normal * weight + bias, atol=2e-3)


SHAPE = (331, 257)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(rate):
    y = np.asarray(dropout(jnp.ones(SHAPE), rate, jax.random.key(0)))
    drop, scale = rate, np.float32(1 / (1 - rate))
    assert set(np.unique(y)) == {np.float32(0), scale}
    # Five deviations of the binomial distribution.
    slack = 5 * np.sqrt(drop * (1 - drop) / y.size)
    assert abs((y > 0).mean() - (1 - drop)) < slack
    assert abs(y.mean(dtype=np.float64) - 1) < slack * scale


def test_dropout_decides_each_element_by_itself():
    """No two places may agree more than chance, nor may the same place under two keys."""
    keys = jax.random.split(jax.random.key(0), 6)
    kept = [np.asarray(dropout(jnp.ones(SHAPE), 0.5, key)).ravel() > 0 for key in keys]
    n, slack = kept[0].size, 5 * 0.5 / np.sqrt(kept[0].size)
    for distance in (1, 2, 3, 4, 8, 64, 256, SHAPE[1], 4096, 2**15):
        agree = (kept[0][distance:] == kept[0][:-distance]).mean()
        assert abs(agree - 0.5) < slack * np.sqrt(n / (n - distance)), distance
    for a, b in itertools.combinations(kept, 2):
        assert abs((a == b).mean() - 0.5) < slack
    # All patterns of three neighbours are met alike.
    patterns = np.lib.stride_tricks.sliding_window_view(kept[1], 3) @ (1, 2, 4)
    assert np.abs(np.bincount(patterns) / len(patterns) - 1 / 8).max() < 5 * np.sqrt(7 / 64 / n)


def test_dropout_is_the_same_under_vmap_and_bfloat16():
    x, keys = jnp.ones((2, 40, 30)), jax.random.split(jax.random.key(3), 2)
    single = jnp.stack([dropout(row, 0.25, key) for row, key in zip(x, keys, strict=True)])
    stacked = jax.vmap(lambda row, key: dropout(row, 0.25, key))(x, keys)
    np.testing.assert_array_equal(stacked, single)
    narrow = dropout(x[0].astype(jnp.bfloat16), 0.25, keys[0])
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow > 0, single[0] > 0)


def test_gelu_and_its_gradient():
    x = np.concatenate([np.linspace(-12, 12, 4001), [-100.0, 100.0, 0.0]])
    single = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(gelu(single), x * norm.cdf(x), atol=2e-6)
    slope = jax.vmap(jax.grad(gelu))(single)
    np.testing.assert_allclose(slope, norm.cdf(x) + x * norm.pdf(x), atol=2e-6)


def test_dropout_repeats_with_a_key_and_differs_between_keys():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    first, again, other = (np.asarray(dropout(x, 0.1, jax.random.key(s))) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert ((first == 0) != (other == 0)).mean() > 0.1
    kept = first != 0
    np.testing.assert_allclose(first[kept], np.asarray(x)[kept] / 0.9, rtol=1e-6)


def test_dropout_without_key_or_rate_is_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)
