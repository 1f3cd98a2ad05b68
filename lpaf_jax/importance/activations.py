"""Second moments of what goes into the layers of a model: what activation-aware methods need."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.models.compressible import compressible_layers
from lpaf_jax.models.functional import (
    Batch,
    inputs_of,
    layer_at,
    parameters,
    replace_layer,
)


class Moment(NamedTuple):
    """Moments of what goes into a layer, over the tokens counted.

    Attributes:
        second: E[xᵀx], (m, m).
        mean: E[x], (m,).
        tokens: how many they were.
        cross: E[x̂ᵀx], (m, m), where the layer is given x̂ and in the dense model x; None where
            both are the same.
    """

    second: Array
    mean: Array
    tokens: int
    cross: Array | None = None


Moments = dict[str, Moment]
"""By path of the layer."""


class Sums(NamedTuple):
    """`Σ xᵀx`, (m, m), and `Σ x`, (m,), in float32."""

    second: Array
    first: Array


class Recorder(nnx.Module):
    """A layer that shows its input to `see` and then computes what it always did."""

    def __init__(self, layer: nnx.Module, see: Callable[[Array], None]):
        self.layer = layer
        self.see = see

    def __call__(self, x: Array) -> Array:
        self.see(x)
        output: Array = self.layer(x)
        return output


def input_moments(
    module: nnx.Module, paths: Iterable[str], counted: Array, run: Callable[[], Any]
) -> tuple[Any, dict[str, Sums], dict[str, str]]:
    """`run()`, and `Σ xᵀx` and `Σ x` of what went into the layers of `module` while it ran.

    To be called where the module is a fresh one, under `jax.jit` after `nnx.merge`; its layers are
    put back in their places. Layers that are given the very same array, as query, key and value
    are, share one sum.

    Args:
        module: that `run` calls: a model, or one block of it.
        paths: of layers in `module`, each of which maps (batch, length, m).
        counted: (batch, length), nonzero for tokens to be counted, 0 for padding.
        run: calls the module.

    Returns:
        what `run` returned; sums by the path of the first layer of those that share one; for each
        layer that ran, the path under which its sum stands.

    Raises:
        ValueError: the input of a layer has no row for each token.
    """
    output, seen, shared = layer_inputs(module, paths, run)
    return output, {path: _moment(path, x, counted) for path, x in seen.items()}, shared


def layer_inputs(
    module: nnx.Module, paths: Iterable[str], run: Callable[[], Any]
) -> tuple[Any, dict[str, Array], dict[str, str]]:
    """`run()`, and what went into the layers of `module` while it ran; see `input_moments`."""
    layers = {path: layer_at(module, path) for path in paths}
    seen: dict[str, Array] = {}
    try:
        for path, layer in layers.items():
            replace_layer(module, path, Recorder(layer, partial(seen.__setitem__, path)))
        output = run()
    finally:
        for path, layer in layers.items():
            replace_layer(module, path, layer)
    first: dict[int, str] = {}
    shared = {path: first.setdefault(id(x), path) for path, x in seen.items()}
    return output, {path: seen[path] for path in first.values()}, shared


def _moment(path: str, x: Array, counted: Array) -> Sums:
    if x.shape[:-1] != counted.shape:
        raise ValueError(
            f"{path}: input shape {x.shape} does not match token shape {counted.shape}"
        )
    rows = jnp.where(counted[..., None] != 0, x, 0)
    return Sums(product(rows, rows), jnp.sum(rows, axis=(0, 1), dtype=jnp.float32))


def product(x: Array, y: Array) -> Array:
    """`Σ xᵀy` over the tokens, in float32."""
    left, right = (each.reshape(-1, each.shape[-1]) for each in (x, y))
    exact = jax.lax.Precision.HIGHEST
    return jnp.matmul(left.T, right, precision=exact, preferred_element_type=jnp.float32)


def activation_moments(model: nnx.Module, batches: Iterable[Batch]) -> Moments:
    """`E[xᵀx]` and `E[x]` of the input x of every compressible layer, over all tokens of `batches`.

    The eigenvalues of such a matrix, times the number of tokens, are the squared singular values of
    all inputs stacked; as the metric L it makes `lpaf_jax.linalg.metric_svd` minimise the error of
    the layer's outputs.

    Args:
        model: left as it is; dropout is off.
        batches: of the inputs a model takes. Tokens whose `attention_mask` is 0 are not counted,
            nor those of rows whose `weight`, where a batch has one, is 0.

    Returns:
        by path of the layer, in the model's order, in float32. Layers with the same input have the
        same arrays.

    Raises:
        ValueError: no token to count.

    Cost: one forward pass, and `2 m²` FLOP a token for each input. Memory beside the model: one
    float32 (m, m) for each input, and the activations of a batch.

    Source: Chen et al., "DRONE: data-aware low-rank compression for large NLP models" (2021);
    Wang et al., "SVD-LLM: truncation-aware singular value decomposition for large language model
    compression" (2024).
    """
    graphdef, state = nnx.split(model)
    paths = compressible_layers(parameters(model))
    shared: dict[str, str] = {}

    def measure(state: Any, batch: Batch, counted: Array) -> dict[str, Sums]:
        fresh: Any = nnx.merge(graphdef, state)
        inputs = inputs_of(batch)
        _, sums, names = input_moments(fresh, paths, counted, lambda: fresh(**inputs))
        shared.update(names)
        return sums

    @partial(jax.jit, donate_argnums=0)
    def add(sums: dict[str, Sums], state: Any, batch: Batch, counted: Array) -> dict[str, Sums]:
        return jax.tree.map(jnp.add, sums, measure(state, batch, counted))

    sums: dict[str, Sums] | None = None
    tokens = 0
    for batch in batches:
        inputs, counted = inputs_of(batch), counted_tokens(batch)
        if sums is None:
            shapes = jax.eval_shape(measure, state, inputs, counted)
            sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        # Progress must not count batches that are only dispatched.
        sums = jax.block_until_ready(add(sums, state, inputs, counted))
        tokens += int(counted.sum())
    if sums is None or tokens == 0:
        raise ValueError("there are no tokens to compute moments on")
    means = {
        path: Moment(sum_.second / tokens, sum_.first / tokens, tokens)
        for path, sum_ in sums.items()
    }
    return {path: means[shared[path]] for path in paths if path in shared}


def counted_tokens(batch: Batch) -> np.ndarray:
    """Which tokens count, (batch, length): no padding, and of rows of weight above 0."""
    ids = np.asarray(batch["input_ids"])
    mask = np.asarray(batch.get("attention_mask", np.ones_like(ids))) != 0
    return mask & (np.asarray(batch["weight"])[:, None] > 0) if "weight" in batch else mask
