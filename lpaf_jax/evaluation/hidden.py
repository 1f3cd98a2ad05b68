"""How far the hidden states of one model are from those of another, layer by layer."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.importance.activations import counted_tokens, product
from lpaf_jax.models import as_function, parameters
from lpaf_jax.models.functional import Batch, Params


class _Sums(NamedTuple):
    """Over tokens, of x and y of every layer: the products, the sums, and both errors."""

    xx: Array
    xy: Array
    yy: Array
    x: Array
    y: Array
    lost: Array
    whole: Array


def compare_hidden(
    dense: nnx.Module, other: nnx.Module, batches: Iterable[Batch]
) -> list[dict[str, float]]:
    """How much the hidden states differ after the embeddings and after every layer.

    Args:
        dense: x are its states. other: y are its; of as many layers of one width.
        batches: of the inputs of both; padding does not count.

    Returns:
        of each layer, JSON values: `error`, `Σ ‖x − y‖² / Σ ‖x‖²` over the tokens; `cka`, the
        linear centred kernel alignment `‖X̃ᵀỸ‖² / (‖X̃ᵀX̃‖ ‖ỸᵀỸ‖)`, 1 where one is the other but for
        a turn, a scale and a shift.

    Raises:
        LpafError: the models differ in width or depth, or there is no token.

    Cost: a forward pass of both, and 6 width² FLOP a token and layer.

    Source: Kornblith et al., "Similarity of neural network representations revisited" (2019).
    """
    forwards = [as_function(model, hidden=True) for model in (dense, other)]
    given = [parameters(model) for model in (dense, other)]

    @partial(jax.jit, donate_argnums=0)
    def add(
        sums: _Sums | None, first: Params, second: Params, batch: Batch, counted: Array
    ) -> _Sums:
        x, y = (
            jnp.where(counted[..., None], forward(params, {}, batch).hidden, 0)
            for forward, params in zip(forwards, (first, second), strict=True)
        )
        products = jax.vmap(product)
        new = _Sums(
            xx=products(x, x),
            xy=products(x, y),
            yy=products(y, y),
            x=x.sum((1, 2)),
            y=y.sum((1, 2)),
            lost=jnp.square(x - y).sum((1, 2, 3)),
            whole=jnp.square(x).sum((1, 2, 3)),
        )
        return new if sums is None else jax.tree.map(jnp.add, sums, new)

    sums, tokens, alike = None, 0, False
    for batch in batches:
        if not alike:
            shapes = [_hidden_shape(f, p, batch) for f, p in zip(forwards, given, strict=True)]
            if shapes[0] != shapes[1]:
                raise LpafError(
                    f"the models have hidden states of {shapes[0]} and {shapes[1]} (layers, "
                    "batch, length, width): they must have the same shape"
                )
            alike = True
        counted = counted_tokens(batch)
        sums = add(sums, *given, batch, counted)
        tokens += int(counted.sum())
    if sums is None or tokens == 0:
        raise LpafError("there are no tokens to compare hidden states on")
    return [_figures(*of, tokens=tokens) for of in zip(*map(np.asarray, sums), strict=True)]


def _hidden_shape(forward: Any, params: Params, batch: Batch) -> tuple[int, ...]:
    found: tuple[int, ...] = jax.eval_shape(lambda p: forward(p, {}, batch).hidden, params).shape
    return found


def _figures(
    xx: np.ndarray,
    xy: np.ndarray,
    yy: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    lost: np.ndarray,
    whole: np.ndarray,
    *,
    tokens: int,
) -> dict[str, float]:
    def centred(second: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return second.astype(np.float64) - np.outer(a, b).astype(np.float64) / tokens

    own, others, both = (
        float(np.linalg.norm(centred(*each))) for each in ((xx, x, x), (yy, y, y), (xy, x, y))
    )
    error = float(lost) / max(float(whole), 1e-30)
    return {"error": error, "cka": both**2 / max(own * others, 1e-300)}
