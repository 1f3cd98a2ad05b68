"""First-order scores of a model that stands still."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from lpaf_jax.models.compressible import is_compressible
from lpaf_jax.models.functional import Batch, Forward, Params


def first_order_scores(
    forward: Forward,
    params: Params,
    batches: Iterable[Batch],
    loss: Callable[[jax.Array, Batch], jax.Array],
) -> Params:
    """`S = −Σ_t g_t ⊙ W` over `batches` at fixed weights, for every compressible kernel.

    What pruning accumulates while it trains, for a model that is not pruned (LPAF without step 1).

    Args:
        forward: from `as_function`.
        params: W; batches: one gradient each; loss: of logits and batch.

    Returns:
        the scores by parameter path.
    """
    kernels = {path: w for path, w in params.items() if is_compressible(path)}

    @jax.jit
    def accumulate(scores: Params, params: Params, batch: Batch) -> Params:
        def value(kernels: Params) -> jax.Array:
            return loss(forward({**params, **kernels}, {}, batch), batch)

        chosen = {path: params[path] for path in scores}
        grads = jax.grad(value)(chosen)
        return {path: s - grads[path] * chosen[path] for path, s in scores.items()}

    scores = {path: jnp.zeros_like(w) for path, w in kernels.items()}
    for batch in batches:
        scores = accumulate(scores, params, batch)
    return scores
