"""Empirical Fisher information of every weight."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from lpaf_jax.models.compressible import compressible
from lpaf_jax.models.functional import Batch, Forward, Params


def fisher_scores(
    forward: Forward,
    params: Params,
    batches: Iterable[Batch],
    loss: Callable[[jax.Array, Batch], jax.Array],
    chunk: int = 4,
) -> Params:
    """The diagonal of the empirical Fisher information at fixed weights, for every kernel.

        I = 1/N Σ_n (∂L_n/∂W)²,    L_n the loss of example n alone

    The mean of squares, not the square of the mean: the gradient of a whole batch averages away
    what its examples disagree about, and squaring it afterwards gives other weights importance.

    Args:
        forward: from `as_function`.
        params: W; batches: rows of weight 0 are not counted; loss: of logits and batch.
        chunk: examples whose gradients are held at once; the memory needed beside the result is
            `chunk` times that of the compressible kernels.

    Returns:
        I by parameter path.

    Raises:
        ValueError: no example of weight above 0.

    Source: Hsu et al., "Language model compression with weighted low-rank factorization" (2022).
    """
    kernels = compressible(params)

    def value(kernels: Params, params: Params, example: Batch) -> jax.Array:
        # An example that only fills up a batch still needs a loss: its square is dropped below.
        alone = {name: x[None] for name, x in example.items()} | {"weight": jnp.ones(1)}
        return loss(forward({**params, **kernels}, {}, alone), alone)

    gradients = jax.vmap(jax.grad(value), in_axes=(None, None, 0))

    @jax.jit
    def accumulate(scores: Params, kernels: Params, params: Params, batch: Batch) -> Params:
        def add(scores: Params, part: Batch) -> tuple[Params, None]:
            found = gradients(kernels, params, part)
            counted = part["weight"] > 0
            return {
                path: scores[path] + jnp.einsum("e,emn->mn", counted, jnp.square(g))
                for path, g in found.items()
            }, None

        rows = len(batch["weight"])
        size = next(c for c in range(min(chunk, rows), 0, -1) if rows % c == 0)
        parts = {name: x.reshape(-1, size, *x.shape[1:]) for name, x in batch.items()}
        return jax.lax.scan(add, scores, parts)[0]

    scores, count = jax.tree.map(jnp.zeros_like, kernels), 0
    for batch in batches:
        scores = accumulate(scores, kernels, params, batch)
        count += int((batch["weight"] > 0).sum())
    if count == 0:
        raise ValueError("no example to take a gradient of")
    return jax.tree.map(lambda s: s / count, scores)
