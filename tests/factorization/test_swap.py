"""Swapping layers keeps what the model computes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpaf_jax.core.errors import LpafError
from lpaf_jax.factorization import low_rank_factors, to_factors, to_mixed
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import (
    BertClassifier,
    BertConfig,
    Linear,
    MixedLinear,
    as_function,
    compressible_layers,
    fixed_arrays,
    is_compressible,
    mixed_paths,
    parameters,
    set_parameters,
)
from lpaf_jax.solvers import Solution
from lpaf_jax.train import Keys, dual_loss

CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=8,
)
BATCH = {
    "input_ids": np.array([[1, 5, 9, 2, 0], [1, 7, 30, 8, 2]], np.int32),
    "attention_mask": np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], np.int32),
    "token_type_ids": np.zeros((2, 5), np.int32),
    "labels": np.array([0, 1], np.int32),
    "weight": np.ones(2, np.float32),
}
# Models this small wait for the compiler alone.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def dense() -> BertClassifier:
    """A model whose biases are not zero, and whose attention is not even."""
    model = BertClassifier(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(0)
    set_parameters(
        model,
        {
            path: jnp.asarray(rng.normal(0, 0.3, array.shape), jnp.float32)
            for path, array in parameters(model).items()
            if "LayerNorm" not in path
        },
    )
    return model


@pytest.fixture(scope="module")
def kernels(dense: BertClassifier) -> dict[str, np.ndarray]:
    return {p: np.asarray(w) for p, w in parameters(dense).items() if is_compressible(p)}


@pytest.fixture(scope="module")
def kept(kernels: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    rng = np.random.default_rng(1)
    return {path: jnp.asarray(rng.random(w.shape) < 0.5) for path, w in kernels.items()}


def truncated(w: np.ndarray, rank: int) -> LowRank:
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    return LowRank(jnp.asarray(u[:, :rank] * s[:rank]), jnp.asarray(vt[:rank]))


def solutions(factors: dict[str, LowRank]) -> dict[str, Solution]:
    return {path: Solution(pair) for path, pair in factors.items()}


@pytest.fixture(scope="module")
def small(kernels: dict[str, np.ndarray]) -> dict[str, LowRank]:
    return {path: truncated(w, 3) for path, w in kernels.items()}


@pytest.fixture(scope="module")
def dense_forward(dense: BertClassifier) -> Any:
    return jit(as_function(dense))


@pytest.fixture(scope="module")
def mixed(
    dense: BertClassifier, small: dict[str, LowRank], kept: dict[str, jax.Array]
) -> BertClassifier:
    model = nnx.clone(dense)
    to_mixed(model, small, kept)
    return model


@pytest.fixture(scope="module")
def low_rank(dense: BertClassifier, small: dict[str, LowRank]) -> BertClassifier:
    model = nnx.clone(dense)
    to_factors(model, solutions(small))
    return model


def logits(model: BertClassifier, **more: Any) -> np.ndarray:
    forward = jit(as_function(model))
    return np.asarray(forward(parameters(model), fixed_arrays(model), BATCH, **more))


def test_full_rank_factors_give_the_dense_model(
    dense: BertClassifier, kernels: dict[str, np.ndarray], dense_forward: Any
) -> None:
    model = nnx.clone(dense)
    expected = np.asarray(dense_forward(parameters(model), {}, BATCH))
    whole = {path: truncated(w, min(w.shape)) for path, w in kernels.items()}
    to_factors(model, solutions(whole))
    np.testing.assert_allclose(logits(model), expected, atol=1e-4)


def test_mixed_layers_draw_between_masked_dense_and_factors(
    dense: BertClassifier,
    mixed: BertClassifier,
    low_rank: BertClassifier,
    kept: dict[str, jax.Array],
    dense_forward: Any,
) -> None:
    forward = jit(as_function(mixed))
    places = mixed_paths(mixed)
    assert places == sorted(path.removesuffix(".kernel") for path in kept)
    given = parameters(mixed), fixed_arrays(mixed), BATCH, None

    original = parameters(dense)
    pruned = {path: w * kept[path] if path in kept else w for path, w in original.items()}
    all_dense = forward(*given, jnp.ones(len(places)))
    np.testing.assert_allclose(all_dense, dense_forward(pruned, {}, BATCH), atol=1e-5)

    all_factors = forward(*given, jnp.zeros(len(places)))
    np.testing.assert_allclose(all_factors, logits(low_rank), atol=1e-5)
    assert np.abs(all_factors - all_dense).max() > 0.01

    # One layer alone: the dense model with that one kernel's product in its place.
    one = places[3]
    draws = jnp.array([0.0 if place == one else 1.0 for place in places])
    a, b = (parameters(mixed)[f"{one}.{name}"] for name in "ab")
    swapped = {**pruned, f"{one}.kernel": a @ b}
    np.testing.assert_allclose(forward(*given, draws), dense_forward(swapped, {}, BATCH), atol=1e-5)


def test_everything_else_stays(
    dense: BertClassifier, mixed: BertClassifier, low_rank: BertClassifier
) -> None:
    original = parameters(dense)
    mask_of = {
        path.removesuffix(".mask") + ".kernel": mask for path, mask in fixed_arrays(mixed).items()
    }
    for model, has_kernel in ((mixed, True), (low_rank, False)):
        found = parameters(model)
        for path, array in original.items():
            if is_compressible(path) and not has_kernel:
                assert path not in found
                assert {path.replace(".kernel", f".{name}") for name in "ab"} <= set(found)
            else:
                kept = np.where(mask_of[path], array, 0) if path in mask_of else array
                np.testing.assert_array_equal(found[path], kept, path)
        assert compressible_layers(found) == compressible_layers(original)


def test_without_masks_the_dense_kernel_is_whole(
    dense: BertClassifier, small: dict[str, LowRank]
) -> None:
    model = nnx.clone(dense)
    path = next(iter(small))
    to_mixed(model, {path: small[path]}, {})
    assert fixed_arrays(model) == {}
    assert mixed_paths(model) == [path.removesuffix(".kernel")]


def test_only_dense_layers_are_swapped(low_rank: BertClassifier, small: dict[str, LowRank]) -> None:
    with pytest.raises(TypeError, match="LowRankLinear, not a dense"):
        to_factors(low_rank, solutions(small))
    with pytest.raises(TypeError, match="LowRankLinear, not a dense"):
        to_mixed(low_rank, small, {})
    assert not any(isinstance(m, MixedLinear) for _, m in nnx.iter_modules(low_rank))


def test_a_solution_may_move_the_bias(dense: BertClassifier, small: dict[str, LowRank]) -> None:
    model, path = nnx.clone(dense), next(iter(small))
    change = jnp.arange(small[path].b.shape[1], dtype=jnp.float32)
    to_factors(model, {path: Solution(small[path], change)})
    name = path.replace(".kernel", ".bias")
    before, after = parameters(dense), parameters(model)
    np.testing.assert_allclose(after.pop(name), before.pop(name) + change, rtol=1e-6)
    for other in before.keys() & after.keys():
        np.testing.assert_array_equal(after[other], before[other])
    assert list(low_rank_factors(model)) == [path]


def test_a_layer_without_a_bias_has_none_to_move() -> None:
    class Body(nnx.Module):
        def __init__(self) -> None:
            self.dense = Linear(jnp.ones((4, 3)), None)

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.body = Body()

    model = Model()
    pair = LowRank(jnp.ones((4, 1)), jnp.ones((1, 3)))
    with pytest.raises(LpafError, match="dense has no bias, but the solution changes it"):
        to_factors(model, {"body.dense.kernel": Solution(pair, jnp.zeros(3))})
    to_factors(model, {"body.dense.kernel": Solution(pair)})
    assert parameters(model).keys() == {"body.dense.a", "body.dense.b"}


def test_training_the_factors_alone_computes_no_dense_matrix(
    mixed: BertClassifier, low_rank: BertClassifier
) -> None:
    key = jax.random.key(0)

    def program(model: BertClassifier, layers: int) -> str:
        loss = dual_loss(as_function(model), lambda t: 0.5 + 0 * t, layers, 1.0)
        grad = jax.grad(lambda p: loss(p, fixed_arrays(model), BATCH, Keys(key, key), 0)[0])
        return str(jax.make_jaxpr(grad)(parameters(model)))

    # The kernel of the feed-forward layer, of a shape that nothing else has.
    assert "f32[32,48]" in program(mixed, len(mixed_paths(mixed)))
    assert "f32[32,48]" not in program(low_rank, 0)
