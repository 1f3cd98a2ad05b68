"""Put factorized or mixed layers in the place of dense ones."""

from flax import nnx
from jax import Array

from lpaf_jax.linalg import LowRank
from lpaf_jax.models import Linear, LowRankLinear, MixedLinear, layer_at, replace_layer
from lpaf_jax.models.functional import Params


def to_mixed(model: nnx.Module, factors: dict[str, LowRank], masks: Params) -> None:
    """Let every layer in `factors` (by kernel path) hold its dense kernel, its mask and factors."""
    for path, pair in factors.items():
        place = path.removesuffix(".kernel")
        dense = _dense(model, place)
        mask = masks.get(path)
        replace_layer(model, place, MixedLinear(dense.kernel[...], mask, pair, _bias(dense)))


def to_low_rank(model: nnx.Module, factors: dict[str, LowRank]) -> None:
    """Let every layer in `factors` (by kernel path) hold its factors alone."""
    for path, pair in factors.items():
        place = path.removesuffix(".kernel")
        replace_layer(model, place, LowRankLinear(pair, _bias(_dense(model, place))))


def _bias(layer: Linear) -> Array | None:
    return None if layer.bias is None else layer.bias[...]


def _dense(model: nnx.Module, place: str) -> Linear:
    layer = layer_at(model, place)
    if not isinstance(layer, Linear):
        raise TypeError(f"{place} is {type(layer).__name__}, not a dense linear layer")
    return layer
