"""Importance from the scores of a pruned model, as the stage that factorizes takes it."""

import jax.numpy as jnp
from jax import Array

from lpaf_jax.importance import Weighting, with_floor


def by_score(score: Array, mask: Array, floor: float) -> Array:
    """`max(S, 0) ⊙ M` at mean 1, plus the floor."""
    raw = jnp.where(mask, jnp.maximum(score, 0.0), 0.0)
    found = with_floor(Weighting(entries=raw), floor).entries
    assert found is not None
    return found
