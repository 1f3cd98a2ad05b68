"""What a matrix's singular values and zero pattern say about how far it can be compressed."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from lpaf_jax.linalg.checks import as_floats
from lpaf_jax.linalg.lapack import singular_values_of_each
from lpaf_jax.linalg.scaling import exponent, from_unit, to_unit
from lpaf_jax.linalg.sharding import on_mesh


def singular_values(w: Float[Array, "*stack m n"]) -> Float[Array, "*stack r"]:
    """Singular values in falling order, r = min(m, n)."""
    (w,) = as_floats(w)
    return on_mesh(_singular_values, w, out=PartitionSpec())


@jax.jit
def _singular_values(w: Array) -> Array:
    unit = exponent(w)
    return from_unit(singular_values_of_each(to_unit(w, unit)), unit)


def effective_rank(s: Float[Array, "*stack r"]) -> Float[Array, "*stack"]:
    """`exp(−Σ p_i ln p_i)` with `p = s / Σ s`: the number of directions in use.

    Lies between 1 and r, r where all singular values are equal; 0 for a zero matrix.

    Source: Roy & Vetterli, "The effective rank: a measure of effective dimensionality" (2007).
    """
    s = _near_one(s)
    total = s.sum(axis=-1, keepdims=True)
    p = s / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), axis=-1)
    return jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0)


def stable_rank(s: Float[Array, "*stack r"]) -> Float[Array, "*stack"]:
    """`‖W‖_F² / ‖W‖₂² = Σ s² / max s²`, at most the rank; 0 for a zero matrix.

    Source: Rudelson & Vershynin, "Sampling from large matrices" (2007).
    """
    s = _near_one(s)
    largest = s.max(axis=-1, keepdims=True)
    return jnp.sum(jnp.square(s / jnp.where(largest > 0, largest, 1)), axis=-1)


def energy_rank(s: Float[Array, "*stack r"], share: float = 0.9) -> Int[Array, "*stack"]:
    """The least number of singular values whose squares hold `share` of `Σ s²`.

    Raises:
      ValueError: `share` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    s = _near_one(s)
    energy = jnp.cumsum(jnp.square(jnp.sort(s, axis=-1, descending=True)), axis=-1)
    total = energy[..., -1:]
    missing = jnp.sum(energy < share * total, axis=-1)
    return jnp.where(total[..., 0] > 0, missing + 1, 0)


@jax.jit
def _near_one(s: Array) -> Array:
    """Each spectrum in a unit of its own: what depends on shares alone is the same."""
    (s,) = as_floats(s)
    return to_unit(s, exponent(s, axis=-1))


def empty_rows(mask: Bool[Array, "*stack m n"]) -> Float[Array, "*stack"]:
    """The share of rows of `mask` (or of a pruned matrix) with no non-zero entry."""
    return jnp.mean(~jnp.any(jnp.asarray(mask), axis=-1), axis=-1, dtype=jnp.float32)


def empty_columns(mask: Bool[Array, "*stack m n"]) -> Float[Array, "*stack"]:
    """The share of columns of `mask` (or of a pruned matrix) with no non-zero entry."""
    return jnp.mean(~jnp.any(jnp.asarray(mask), axis=-2), axis=-1, dtype=jnp.float32)
