"""Empirical Fisher information of every weight."""

from collections.abc import Callable, Iterable
from typing import Literal

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
    *,
    per: Literal["example", "batch"] = "example",
) -> Params:
    """The diagonal of the empirical Fisher information at fixed weights, for every kernel.

        example   I = 1/N Σ_n (∂L_n/∂W)²,              L_n the loss of example n alone
        batch     I = 1/N Σ_b (Σ_{n ∈ b} ∂L_n/∂W)²,    B times the squared gradient of a batch of B

    The first is the definition, the mean of squares. The second costs one ordinary gradient a batch
    and agrees only as far as the gradients of different examples are uncorrelated and of mean 0: a
    batch averages away what its examples disagree about. Over random batches of B its expectation
    is `(N − B)/(N − 1) I + N (B − 1)/(N − 1) ḡ²`, ḡ the mean gradient, and each entry is a mean of
    only N/B squares. `benchmarks/fisher.py` measures the difference on a real model: small there,
    and on a CPU, where examples one by one keep the cores as busy, hardly any time is saved.

    Args:
        forward: from `as_function`.
        params: W; batches: rows of weight 0 are not counted; loss: of logits and batch, a mean over
            its rows by weight.
        chunk: examples whose gradients are held at once; the memory needed beside the result is
            `chunk` times that of the compressible kernels. One gradient alone is held per batch.
        per: what is squared, the gradient of an example or of a batch.

    Returns:
        I by parameter path.

    Raises:
        ValueError: no example of weight above 0.

    Source: Hsu et al., "Language model compression with weighted low-rank factorization" (2022);
    for the batch, Khan et al., "Fast and scalable Bayesian deep learning by weight-perturbation in
    Adam" (2018).
    """
    kernels = compressible(params)

    def value(kernels: Params, params: Params, batch: Batch) -> jax.Array:
        return loss(forward({**params, **kernels}, {}, batch), batch)

    def value_alone(kernels: Params, params: Params, example: Batch) -> jax.Array:
        # An example that only fills up a batch still needs a loss: its square is dropped below.
        alone = {name: x[None] for name, x in example.items()} | {"weight": jnp.ones(1)}
        return value(kernels, params, alone)

    gradients = jax.vmap(jax.grad(value_alone), in_axes=(None, None, 0))

    @jax.jit
    def add_examples(scores: Params, kernels: Params, params: Params, batch: Batch) -> Params:
        def add(scores: Params, part: Batch) -> tuple[Params, None]:
            found = gradients(kernels, params, part)
            counted = part["weight"] > 0
            return {
                path: scores[path] + jnp.einsum("e,emn->mn", counted, jnp.square(g))
                for path, g in found.items()
            }, None

        return jax.lax.scan(add, scores, in_chunks(batch, chunk))[0]

    @jax.jit
    def add_batch(scores: Params, kernels: Params, params: Params, batch: Batch) -> Params:
        rows = jnp.sum(batch["weight"])
        means = jax.grad(value)(kernels, params, batch)
        return jax.tree.map(lambda s, g: s + jnp.square(rows * g), scores, means)

    add = add_examples if per == "example" else add_batch
    scores, count = jax.tree.map(jnp.zeros_like, kernels), 0
    for batch in batches:
        # Progress must not count batches that are only dispatched.
        scores = jax.block_until_ready(add(scores, kernels, params, batch))
        count += int((batch["weight"] > 0).sum())
    if count == 0:
        raise ValueError("there are no examples to compute gradients on")
    return jax.tree.map(lambda s: s / count, scores)


def in_chunks(batch: Batch, chunk: int) -> Params:
    """A batch in parts of one size, at most `chunk` rows each: a new first axis."""
    rows = len(batch["weight"])
    size = next(c for c in range(min(chunk, rows), 0, -1) if rows % c == 0)
    # No -1: windows of a text have labels of no columns, (rows, 0).
    return {name: x.reshape(rows // size, size, *x.shape[1:]) for name, x in batch.items()}
