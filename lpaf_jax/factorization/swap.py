"""Put factorized or mixed layers in the place of dense ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx
from jax import Array

from lpaf_jax.checkpoints import records_of
from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors import KINDS, LOW_RANK, kind_of
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import Linear, MixedLinear, layer_at, replace_layer
from lpaf_jax.models.functional import Params
from lpaf_jax.solvers import Solution


def to_mixed(model: nnx.Module, factors: dict[str, LowRank], masks: Params) -> None:
    """Let every layer in `factors` (by kernel path) hold its dense kernel, its mask and factors."""
    for path, pair in factors.items():
        place = path.removesuffix(".kernel")
        dense = _dense(model, place)
        mask = masks.get(path)
        replace_layer(model, place, MixedLinear(dense.kernel[...], mask, pair, bias_of(dense)))


def to_factors(model: nnx.Module, solutions: Mapping[str, Solution]) -> None:
    """Let every layer in `solutions` (by kernel path) hold its factors alone.

    Raises:
        LpafError: a solution moves the bias of a layer that has none.
    """
    for path, (factors, change) in solutions.items():
        place = path.removesuffix(".kernel")
        bias = moved_bias(place, bias_of(_dense(model, place)), change)
        replace_layer(model, place, layer_of(factors, bias))


def layer_of(factors: Sequence[Array], bias: Array | None) -> nnx.Module:
    """The layer that a solution makes."""
    kind = kind_of(factors)
    return kind.layer(dict(zip(kind.leaves, factors, strict=True)), bias, {})


def moved_bias(place: str, bias: Array | None, change: Array | None) -> Array | None:
    """The bias of a layer after `change`.

    Raises:
        LpafError: there is a change and no bias: checkpoints of the family have no place for one.
    """
    if change is None:
        return bias
    if bias is None:
        raise LpafError(f"{place} has no bias, but the solution changes it")
    return bias + change


def low_rank_factors(model: nnx.Module) -> dict[str, LowRank]:
    """The factors of all low-rank layers, by the kernel path of the layer."""
    layers = {
        path: layer_at(model, path)
        for path, record in records_of(model).items()
        if record["kind"] == LOW_RANK.name
    }
    return {f"{path}.kernel": LowRank(layer.a[...], layer.b[...]) for path, layer in layers.items()}


def take_embeddings(model: nnx.Module, source: nnx.Module) -> None:
    """Give `model` the factorized tables of `source`, in the place of its own."""
    for path, record in records_of(source).items():
        if KINDS[record["kind"]].replaces != "kernel":
            replace_layer(model, path, nnx.clone(layer_at(source, path)))


def bias_of(layer: Any) -> Array | None:
    """The bias of a linear layer, dense or of factors, if it has one."""
    return None if layer.bias is None else layer.bias[...]


def _dense(model: nnx.Module, place: str) -> Linear:
    layer = layer_at(model, place)
    if not isinstance(layer, Linear):
        raise TypeError(f"{place} is {type(layer).__name__}, not a dense linear layer")
    return layer
