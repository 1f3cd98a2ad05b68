"""Fisher information by rows, exact, without the gradient of a matrix."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.importance.base import Importance, Subject, Weighting, register_importance
from lpaf_jax.importance.gradients import GradientSums, mean_over, output_gradients
from lpaf_jax.models.compressible import compressible_layers
from lpaf_jax.models.functional import Batch, Params, parameters


def fisher_rows(
    model: nnx.Module,
    batches: Iterable[Batch],
    loss: Callable[[Array, Batch], Array],
    paths: Sequence[str] | None = None,
) -> Params:
    """`r_i = 1/N Σ_n ‖∂L_n/∂W_i‖²`, the row sums of the empirical Fisher information's diagonal.

    The gradient of one example is `G = Xᵀ Δ`, X its inputs, (T, m), and Δ the gradients at the
    outputs, (T, n), so that

        ‖G_i‖² = X_iᵀ (Δ Δᵀ) X_i,    X_i the column i of X,

    which needs (T, T) for each example, and never (m, n). Δ of all examples of a batch comes from
    one backward pass: no output of a row depends on another row.

    Args:
        model: left as it is; dropout is off.
        batches: rows of weight 0 are not counted.
        loss: of outputs and batch, a mean by weight.
        paths: of layers; all compressible ones unless given.

    Returns:
        by path of the layer, (m,) in float32; where gradients are far from 1, all divided by one
        number, as in `gradient_moments`.

    Raises:
        ValueError: no row of weight above 0.

    Cost: a forward and a backward pass without the gradients of weights, and `2 T² (m + n)` FLOP a
    row and layer, where those gradients take `2 T m n`. Memory: inputs and gradients at the
    outputs of all layers for a batch, and one (T, T) a row.

    Source: the weights are those of Hsu et al., FWSVD (2022); the identity is ours.
    """
    chosen = list(compressible_layers(parameters(model)) if paths is None else paths)
    at_outputs = output_gradients(model, loss, chosen)
    state = nnx.split(model)[1]
    exact = jax.lax.Precision.HIGHEST

    @jax.jit
    def add(sums: GradientSums, state: Any, batch: Batch, counted: Array) -> GradientSums:
        gradients, inputs, shared = at_outputs(state, batch, counted)

        def squared(path: str, delta: Array) -> Array:
            x = inputs[shared[path]]
            products = jnp.einsum("nti,nui->ntu", delta, delta, precision=exact)
            through = jnp.einsum("ntu,nui->nti", products, x, precision=exact)
            # Of an example alone it is a square, which rounding may take below 0.
            return jnp.maximum(jnp.sum(x * through, axis=1), 0).sum(0)

        return sums.adding(gradients, squared)

    params = parameters(model)
    sums = GradientSums.of_rows({path: _height(params, path) for path in chosen})
    return mean_over(batches, lambda sums, *given: add(sums, state, *given), sums)


def _height(params: Params, path: str) -> int:
    matrix = params.get(f"{path}.kernel", params.get(f"{path}.a"))
    assert matrix is not None, f"{path} is not a linear layer"
    return len(matrix)


def by_rows(subject: Subject, rows: Params) -> dict[str, Weighting]:
    """Rows by layer as the weighting of each matrix."""
    paths = (path.removesuffix(".kernel") for path in subject.weights)
    return {f"{path}.kernel": Weighting(left=rows[path]) for path in paths}


def _weightings(subject: Subject) -> dict[str, Weighting]:
    assert subject.loss is not None
    paths = [path.removesuffix(".kernel") for path in subject.weights]
    return by_rows(subject, fisher_rows(subject.model, subject.batches(), subject.loss, paths))


register_importance(
    Importance(
        "fisher-rows",
        "to preserve the rows that the loss is most sensitive to",
        frozenset({"left"}),
        frozenset({"loss"}),
        _weightings,
        source="L = diag Σ_j E[(∂L/∂W_ij)²]; Hsu et al., 2022, without forming a matrix's gradient",
    )
)
