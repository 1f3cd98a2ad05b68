"""Second moments of the gradients at the outputs of layers, and the metric of two sides."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.importance.activations import Moment, layer_inputs
from lpaf_jax.importance.base import Importance, Subject, Weighting, register_importance
from lpaf_jax.linalg.scaling import exponent, shift, to_unit
from lpaf_jax.models.compressible import compressible_layers
from lpaf_jax.models.functional import (
    Batch,
    Params,
    inputs_of,
    layer_at,
    parameters,
    replace_layer,
)

# Shares of the mean diagonal that are mixed into the moments: they come from few tokens, and the
# gradients of most tokens of a classifier are near 0.
SHRINK_INPUTS, SHRINK_GRADIENTS = 0.02, 0.1

# Exponents: of no gradient at all, and of those whose squares float32 holds with room to spare.
_LEAST, _ROOM = -200, 30


class Probed(nnx.Module):
    """A layer whose output has a probe added, by which the loss is differentiated."""

    def __init__(self, layer: nnx.Module, probe: Array):
        self.layer = layer
        self.probe = probe

    def __call__(self, x: Array) -> Array:
        output: Array = self.layer(x)
        return output + self.probe


def gradient_moments(
    model: nnx.Module,
    batches: Iterable[Batch],
    loss: Callable[[Array, Batch], Array],
    paths: Sequence[str] | None = None,
) -> Params:
    """`G = 1/N Σ_n Σ_t gₙₜᵀ gₙₜ`, gₙₜ = ∂Lₙ/∂yₙₜ, y the output of a compressible layer.

    Lₙ is the loss of row n alone, t runs over all of its tokens, and N is the number of rows that
    count. So neither the size of a batch nor what else is in it changes anything. A loss that is a
    mean over tokens, as that of the next token, is here the mean over those of its own row: a text
    counts as much as any other, however long it is.

    Args:
        model: left as it is; dropout is off.
        batches: of inputs and labels; padding has no gradient. Rows whose `weight` is 0, at every
            token where each has its own, are not counted.
        loss: of outputs and batch, a mean by weight, over rows or over tokens.
        paths: of layers; all compressible ones unless given.

    Returns:
        by path of the layer, (n, n) in float32. Where the largest gradient g lies so far from 1
        that its square would leave float32, all are divided by the square of one power of two near
        g: what they are to each other stays.

    Raises:
        ValueError: no row of weight above 0.

    Cost: one forward and one backward pass, and `2 n²` FLOP a token and layer. Memory beside those:
    an (n, n) for each layer, and the gradients of all outputs of a batch.

    Source: Martens & Grosse, "Optimizing neural networks with Kronecker-factored approximate
    curvature" (2015).
    """
    chosen = list(compressible_layers(parameters(model)) if paths is None else paths)
    at_outputs = output_gradients(model, loss, chosen)
    state = nnx.split(model)[1]

    @jax.jit
    def add(sums: GradientSums, state: Any, batch: Batch, counted: Array) -> GradientSums:
        return sums.with_gradients(at_outputs(state, batch, counted).gradients)

    params = parameters(model)
    sums = GradientSums.none({path: _width(params, path) for path in chosen})
    return mean_over(batches, lambda sums, *given: add(sums, state, *given), sums)


def mean_over(
    batches: Iterable[Batch],
    add: "Callable[[GradientSums, Batch, np.ndarray], GradientSums]",
    sums: "GradientSums",
) -> Params:
    """The sums after every batch, over the number of rows that count.

    Args:
        add: of the sums so far, a batch, and which of its rows count.

    Raises:
        ValueError: no row does.
    """
    count = 0
    for batch in batches:
        counted = rows_that_count(batch)
        # Progress must not count batches that are only dispatched.
        sums = jax.block_until_ready(add(sums, dict(batch), counted))
        count += int(counted.sum())
    if count == 0:
        raise ValueError("there are no examples to compute gradients on")
    return sums.means(count)


class AtOutputs(NamedTuple):
    """Of a batch, by path of the layer.

    Attributes:
        gradients: ∂Lₙ/∂yₙₜ, (rows, tokens, n), y the output of a layer and Lₙ the loss of row n
            alone; 0 in rows that do not count.
        inputs: what went into the layers, (rows, tokens, m), of the first of those that share it.
        shared: for each layer, the path under which its input stands.
    """

    gradients: Params
    inputs: Params
    shared: dict[str, str]


def output_gradients(
    model: nnx.Module, loss: Callable[[Array, Batch], Array], paths: Sequence[str]
) -> Callable[[Any, Batch, Array], AtOutputs]:
    """`f(state, batch, counted)`, to be called under `jax.jit`; see `gradient_moments`.

    Args:
        model: whose structure alone is kept.
        loss: of outputs and batch, a mean by weight.
        paths: of linear layers.
    """
    graphdef = nnx.split(model)[0]
    params = parameters(model)
    widths = {path: _width(params, path) for path in paths}

    def alone(output: Array, row: Batch) -> Array:
        return loss(output[None], {name: x[None] for name, x in row.items()})

    def found(state: Any, batch: Batch, counted: Array) -> AtOutputs:
        shared: dict[str, str] = {}

        def value(probes: Params) -> tuple[Array, Params]:
            fresh: Any = nnx.merge(graphdef, state)
            for path in paths:
                replace_layer(fresh, path, Probed(layer_at(fresh, path), probes[path]))
            outputs, inputs, names = layer_inputs(fresh, paths, lambda: fresh(**inputs_of(batch)))
            shared.update(names)
            # A row that only fills up needs a loss, too: its gradient is dropped below.
            weight = batch["weight"]
            rows = counted.reshape(-1, *[1] * (weight.ndim - 1))
            each = {**batch, "weight": jnp.where(rows, weight, 1)}
            return jnp.sum(jax.vmap(alone)(outputs.astype(jnp.float32), each)), inputs

        shape = batch["input_ids"].shape
        probes = {p: jnp.zeros((*shape, n), jnp.float32) for p, n in widths.items()}
        gradients, inputs = jax.grad(value, has_aux=True)(probes)
        gradients = {p: jnp.where(counted[:, None, None], g, 0) for p, g in gradients.items()}
        return AtOutputs(gradients, inputs, shared)

    return found


def rows_that_count(batch: Batch) -> np.ndarray:
    """Which rows of a batch have a weight above 0, at any token where each has its own."""
    weighs = np.asarray(batch["weight"]) > 0
    return np.any(weighs.reshape(len(weighs), -1), axis=1)


class GradientSums(NamedTuple):
    """Sums of squares of gradients over `4^unit` by path: `unit` is that of the largest one yet.

    Gradients of a model that has learnt its task may be 1e-25, whose squares float32 does not hold.
    """

    squares: Params
    unit: Array

    @staticmethod
    def none(widths: Mapping[str, int]) -> "GradientSums":
        squares = {path: jnp.zeros((n, n), jnp.float32) for path, n in widths.items()}
        return GradientSums(squares, jnp.int32(_LEAST))

    @staticmethod
    def of_rows(sizes: Mapping[str, int]) -> "GradientSums":
        squares = {path: jnp.zeros(m, jnp.float32) for path, m in sizes.items()}
        return GradientSums(squares, jnp.int32(_LEAST))

    def with_gradients(self, found: Params) -> "GradientSums":
        """With `Σ gᵀg` of rows g."""
        exact = jax.lax.Precision.HIGHEST

        def squared(path: str, g: Array) -> Array:
            flat = g.reshape(-1, g.shape[-1])
            return jnp.matmul(flat.T, flat, precision=exact)

        return self.adding(found, squared)

    def adding(
        self, found: Mapping[str, Any], squared: Callable[[str, Any], Array]
    ) -> "GradientSums":
        """With what `squared` makes of each gradient in units of the largest one.

        Args:
            found: gradients by path, arrays or trees of them.
            squared: `(path, gradient) -> what is added`, of degree two.
        """
        largest = jnp.max(jnp.stack([jnp.abs(g).max() for g in jax.tree.leaves(dict(found))]))
        unit = jnp.maximum(self.unit, jnp.where(largest > 0, exponent(largest), _LEAST))
        squares = {
            path: shift(self.squares[path], 2 * (self.unit - unit))
            + squared(path, jax.tree.map(lambda x: to_unit(x, unit), g))
            for path, g in found.items()
        }
        return GradientSums(squares, unit)

    def means(self, count: int) -> Params:
        near = -_ROOM <= int(self.unit) <= _ROOM
        back = 2 * self.unit if near else jnp.int32(0)
        return {path: shift(square / count, back) for path, square in self.squares.items()}


def _width(params: Params, path: str) -> int:
    kernel = params.get(f"{path}.kernel", params.get(f"{path}.b"))
    assert kernel is not None, f"{path} is not a linear layer"
    return int(kernel.shape[1])


def shrunk(moment: Array, share: float) -> Array:
    """`(1 − α) M + α tr(M)/n 1`: its small eigenvalues are known less well than its trace."""
    n = len(moment)
    return (1 - share) * moment + share * (jnp.trace(moment) / n) * jnp.eye(n, dtype=moment.dtype)


def by_gradients(moment: Array) -> Weighting:
    """The right side of the metric, from the moment of the gradients of a layer."""
    return Weighting(right=shrunk(moment, SHRINK_GRADIENTS))


def _right(subject: Subject) -> dict[str, Weighting]:
    assert subject.loss is not None
    paths = [path.removesuffix(".kernel") for path in subject.weights]
    found = gradient_moments(subject.model, subject.batches(), subject.loss, paths)
    return {f"{path}.kernel": by_gradients(moment) for path, moment in found.items()}


def _left(weighting: Weighting, moment: Moment) -> Weighting:
    return weighting._replace(left=shrunk(moment.second, SHRINK_INPUTS))


TWO_SIDED = register_importance(
    Importance(
        "two-sided",
        "to change the loss least, as estimated from inputs and output gradients",
        frozenset({"left", "right"}),
        frozenset({"loss", "inputs"}),
        _right,
        _left,
        source="L = E[xᵀx], R = E[gᵀg]; Martens & Grosse, K-FAC, 2015",
    )
)
