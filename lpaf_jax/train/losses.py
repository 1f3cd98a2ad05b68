"""Losses over logits; `weight` is 0 on rows that only pad a batch."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits: Array, labels: Array, weight: Array) -> Array:
    """Weighted mean of `−log softmax(logits)[label]` over the batch.

    Args:
        logits: (batch, labels). labels: (batch,) integers. weight: (batch,).
    """
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]
    return -jnp.sum(weight * chosen) / jnp.sum(weight)


def symmetric_kl(first: Array, second: Array, weight: Array) -> Array:
    """Weighted mean of `½ (KL(p‖q) + KL(q‖p))`, p and q the class probabilities of two passes.

    The two divergences together are `½ Σ (p − q)(log p − log q)`, which needs no entropy.

    Args:
        first, second: logits, (batch, labels). weight: (batch,).
    """
    log_p, log_q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    divergence = 0.5 * jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1)
    return jnp.sum(weight * divergence) / jnp.sum(weight)
