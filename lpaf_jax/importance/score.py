"""First-order scores: how they grow, and those of a model that stands still."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from lpaf_jax.models.compressible import compressible
from lpaf_jax.models.functional import Batch, Forward, Params

# (S, gradient, W) -> S after one more step
Accumulate = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# The paper's score is signed: it grows where a weight moves away from zero. Its lowest values are
# then not the weights that matter least but large ones that happen to shrink, and a short schedule
# removes these first. The unsigned sum ranks them by how much the loss depends on them.
FIRST_ORDER: dict[str, Accumulate] = {
    "first-order": lambda s, g, w: s - g * w,
    "sensitivity": lambda s, g, w: s + jnp.abs(g * w),
}


def first_order_scores(
    forward: Forward,
    params: Params,
    batches: Iterable[Batch],
    loss: Callable[[jax.Array, Batch], jax.Array],
    criterion: str = "sensitivity",
) -> Params:
    """Scores summed over `batches` at fixed weights, for every compressible kernel.

    What pruning accumulates while it trains, for a model that is not pruned (LPAF without step 1).

    Args:
        forward: from `as_function`.
        params: W; batches: one gradient each; loss: of logits and batch.
        criterion: one of `FIRST_ORDER`; the paper's is "first-order".

    Returns:
        the scores by parameter path.
    """
    kernels = compressible(params)

    def value(kernels: Params, params: Params, batch: Batch) -> jax.Array:
        return loss(forward({**params, **kernels}, {}, batch), batch)

    @jax.jit
    def accumulate(scores: Params, kernels: Params, params: Params, batch: Batch) -> Params:
        grads = jax.grad(value)(kernels, params, batch)
        return jax.tree.map(FIRST_ORDER[criterion], scores, grads, kernels)

    scores = jax.tree.map(jnp.zeros_like, kernels)
    for batch in batches:
        scores = accumulate(scores, kernels, params, batch)
    return scores
