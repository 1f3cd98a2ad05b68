"""Rotary position embeddings (Su et al., 2021), and the ways in which their reach is stretched.

Two halves of a head are the coordinates of points in as many planes, and pair i is turned by
`position · f_i`, where `f_i = θ^(−2i/d)`. What is called a scaling changes the frequencies:

- `linear`: `f / factor` (positions are interpolated);
- `dynamic`: θ grows with the text, beyond `max_position_embeddings` tokens;
- `llama3`: low frequencies are divided by `factor`, high ones kept, those between blended;
- `yarn`: the same with a linear ramp, and the rotated vectors are made longer.

Sources: Su et al., "RoFormer" (2021); Chen et al., "Extending context window of large language
models via positional interpolation" (2023); bloc97 and emozilla, NTK-aware scaling (2023);
Peng et al., "YaRN" (2023); Llama 3.1 (2024). Names of fields and defaults are those of
`transformers` 5 (`rope_parameters`) and 4 (`rope_theta` and `rope_scaling`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.core.errors import LpafError


@dataclass(frozen=True)
class Rotary:
    """How far each pair is turned by one position.

    Attributes:
        frequencies: in radians, of the pairs in order.
        scale: of the rotated vectors.
        stretch: of `dynamic`, `factor` and the number of positions beyond which it stretches.
    """

    frequencies: tuple[float, ...]
    scale: float = 1.0
    stretch: tuple[float, int] | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any], head_dim: int, positions: int) -> "Rotary":
        """Read what a parsed `config.json` says of them.

        Args:
            values: `rope_parameters`, or `rope_theta` and `rope_scaling`, are looked at.
            head_dim: width of a head.
            positions: `max_position_embeddings`.

        Raises:
            LpafError: the kind is not known, or lacks a field that it needs.
        """
        listed = values.get("rope_scaling") or values.get("rope_parameters") or {}
        beside = ("rope_theta", "partial_rotary_factor")
        given: dict[str, Any] = {name: values.get(name) for name in beside}
        given |= {name: value for name, value in listed.items() if value is not None}
        if any(isinstance(value, dict) for value in given.values()):
            raise LpafError(
                "config.json: rope_parameters that differ between layers are not supported"
            )
        if given["partial_rotary_factor"] not in (None, 1):
            raise LpafError(
                f"config.json: partial_rotary_factor {given['partial_rotary_factor']} is not "
                "supported: the whole head must be rotated"
            )
        if given["rope_theta"] is None:
            given["rope_theta"] = 10_000.0
        # Where it stands beside them, it goes before what stands among them.
        name = "original_max_position_embeddings"
        given[name] = values.get(name) or given.get(name) or positions
        kind = given.get("rope_type") or given.get("type") or "default"
        if kind not in _KINDS:
            raise LpafError(
                f"config.json: the rotary embedding {kind!r} is not one of {', '.join(_KINDS)}"
            )
        # In float32, as models were trained: an ulp of a frequency is 5e-4 radians at place 8,000.
        powers = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        plain = 1 / np.float32(given["rope_theta"]) ** powers
        try:
            return _KINDS[kind](plain, given, positions)
        except KeyError as error:
            raise LpafError(
                f"config.json: the rotary embedding {kind!r} needs {error.args[0]}"
            ) from None

    def turns(self, position_ids: Array) -> tuple[Array, Array]:
        """Cosine and sine of the angles at `position_ids`, (..., length): (..., length, pairs)."""
        frequencies = jnp.asarray(self.frequencies, jnp.float32)
        if self.stretch is not None:
            factor, positions = self.stretch
            longest = jnp.maximum(position_ids.max() + 1, positions)
            # θ is multiplied by growth^(d/(d − 2)).
            growth = factor * longest / positions - (factor - 1)
            pairs = len(self.frequencies)
            frequencies *= growth ** -(jnp.arange(pairs) / max(pairs - 1, 1))
        angles = position_ids[..., None].astype(jnp.float32) * frequencies
        return jnp.cos(angles) * self.scale, jnp.sin(angles) * self.scale


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn every pair of `x` by the angles whose cosine and sine are given.

    Pair i are the elements i and i + head_dim / 2. Computed in float32, returned as `x` came.

    Args:
        x: (batch, length, heads, head_dim).
        cos: (batch or 1, length, head_dim / 2).
        sin: likewise.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    first, second = jnp.split(wide, 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _default(plain: np.ndarray, given: dict[str, Any], positions: int) -> Rotary:
    return Rotary(tuple(plain.tolist()))


def _linear(plain: np.ndarray, given: dict[str, Any], positions: int) -> Rotary:
    return Rotary(tuple((plain / given["factor"]).tolist()))


def _dynamic(plain: np.ndarray, given: dict[str, Any], positions: int) -> Rotary:
    return Rotary(tuple(plain.tolist()), stretch=(given["factor"], positions))


def _llama3(plain: np.ndarray, given: dict[str, Any], positions: int) -> Rotary:
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    # How often a pair turns in a text of the training: kept from `high` on, stretched up to `low`.
    often = given["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = np.clip((often - low) / (high - low), 0, 1)
    return Rotary(tuple((plain * (kept + (1 - kept) / given["factor"])).tolist()))


def _yarn(plain: np.ndarray, given: dict[str, Any], positions: int) -> Rotary:
    original, dim = given["original_max_position_embeddings"], 2 * len(plain)
    factor = given.get("factor", positions / original)

    def pair(turns: float) -> float:
        """The pair, as a real number, that turns so often in a text of the training."""
        ratio = math.log(original / (2 * math.pi * turns)) / math.log(given["rope_theta"])
        return dim / 2 * ratio

    first, last = pair(given.get("beta_fast") or 32), pair(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    kept = 1 - np.clip((np.arange(len(plain)) - first) / (last - first or 0.001), 0, 1)

    def length(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    scale = given.get("attention_factor")
    if scale is None:
        above, below = given.get("mscale"), given.get("mscale_all_dim")
        scale = length(above) / length(below) if above and below else length(1)
    return Rotary(tuple((plain * (kept + (1 - kept) / factor)).tolist()), scale)


_KINDS: dict[str, Callable[[np.ndarray, dict[str, Any], int], Rotary]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
