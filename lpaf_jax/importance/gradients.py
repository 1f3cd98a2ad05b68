"""Second moments of the gradients at the outputs of layers, and the metric of two sides."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.importance.activations import Moment
from lpaf_jax.importance.base import Importance, Subject, Weighting, register_importance
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


class _Probed(nnx.Module):
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
    """`G = 1/N Σ_t gₜᵀ gₜ` of the output y of every compressible layer, g = ∂(Σ losses)/∂y.

    g is the gradient of the summed loss of all rows, so that it does not depend on the size of a
    batch; the sum runs over all tokens t, and N is the number of rows of weight above 0.

    Args:
        model: left as it is; dropout is off.
        batches: of inputs and labels; padding has no gradient, rows of weight 0 have none.
        loss: of outputs and batch, a mean over its rows by weight.
        paths: of layers; all compressible ones unless given.

    Returns:
        by path of the layer, (n, n) in float32.

    Raises:
        ValueError: no row of weight above 0.

    Cost: one forward and one backward pass, and `2 n²` FLOP a token and layer. Memory beside those:
    an (n, n) for each layer, and the gradients of all outputs of a batch.

    Source: Martens & Grosse, "Optimizing neural networks with Kronecker-factored approximate
    curvature" (2015).
    """
    graphdef, state = nnx.split(model)
    chosen = list(compressible_layers(parameters(model)) if paths is None else paths)
    exact = jax.lax.Precision.HIGHEST

    @jax.jit
    def add(sums: Params, state: Any, batch: Batch) -> Params:
        rows = jnp.sum(batch["weight"] > 0) if batch["weight"].ndim == 1 else len(batch["weight"])

        def value(probes: Params) -> Array:
            fresh: Any = nnx.merge(graphdef, state)
            for path in chosen:
                replace_layer(fresh, path, _Probed(layer_at(fresh, path), probes[path]))
            outputs = fresh(**inputs_of(batch)).astype(jnp.float32)
            return loss(outputs, batch) * rows

        shape = batch["input_ids"].shape
        probes = {path: jnp.zeros((*shape, n), jnp.float32) for path, n in widths.items()}
        found = jax.grad(value)(probes)
        flat = {path: g.reshape(-1, g.shape[-1]) for path, g in found.items()}
        return {path: sums[path] + jnp.matmul(g.T, g, precision=exact) for path, g in flat.items()}

    params = parameters(model)
    widths = {path: _width(params, path) for path in chosen}
    sums = {path: jnp.zeros((n, n), jnp.float32) for path, n in widths.items()}
    count = 0
    for batch in batches:
        sums = add(sums, state, dict(batch))
        count += (
            int((batch["weight"] > 0).sum()) if batch["weight"].ndim == 1 else len(batch["weight"])
        )
    if count == 0:
        raise ValueError("no example to take a gradient of")
    return {path: total / count for path, total in sums.items()}


def _width(params: Params, path: str) -> int:
    kernel = params.get(f"{path}.kernel", params.get(f"{path}.b"))
    assert kernel is not None, f"{path} is no linear layer"
    return int(kernel.shape[1])


def shrunk(moment: Array, share: float) -> Array:
    """`(1 − α) M + α tr(M)/n 1`: its small eigenvalues are known less well than its trace."""
    n = len(moment)
    return (1 - share) * moment + share * (jnp.trace(moment) / n) * jnp.eye(n, dtype=moment.dtype)


def _right(subject: Subject) -> dict[str, Weighting]:
    assert subject.loss is not None
    paths = [path.removesuffix(".kernel") for path in subject.weights]
    found = gradient_moments(subject.model, subject.batches(), subject.loss, paths)
    return {
        f"{path}.kernel": Weighting(right=shrunk(moment, SHRINK_GRADIENTS))
        for path, moment in found.items()
    }


def _left(weighting: Weighting, moment: Moment) -> Weighting:
    return weighting._replace(left=shrunk(moment.second, SHRINK_INPUTS))


TWO_SIDED = register_importance(
    Importance(
        "two-sided",
        "so that the loss changes least, by its inputs and the gradients at its outputs",
        frozenset({"left", "right"}),
        frozenset({"loss", "inputs"}),
        _right,
        _left,
        source="L = E[xᵀx], R = E[gᵀg]; Martens & Grosse, K-FAC, 2015",
    )
)
