"""Put factorized or mixed layers in the place of dense ones."""

from flax import nnx
from jax import Array

from lpaf_jax.factors import LOW_RANK
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import Linear, MixedLinear, layer_at, records_of, replace_layer
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
        layer = LOW_RANK.layer(pair._asdict(), _bias(_dense(model, place)))
        replace_layer(model, place, layer)


def low_rank_factors(model: nnx.Module) -> dict[str, LowRank]:
    """The factors of all low-rank layers, by the kernel path of the layer."""
    layers = {
        path: layer_at(model, path)
        for path, record in records_of(model).items()
        if record["kind"] == LOW_RANK.name
    }
    return {f"{path}.kernel": LowRank(layer.a[...], layer.b[...]) for path, layer in layers.items()}


def _bias(layer: Linear) -> Array | None:
    return None if layer.bias is None else layer.bias[...]


def _dense(model: nnx.Module, place: str) -> Linear:
    layer = layer_at(model, place)
    if not isinstance(layer, Linear):
        raise TypeError(f"{place} is {type(layer).__name__}, not a dense linear layer")
    return layer
