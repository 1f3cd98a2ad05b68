"""Heads of attention and channels of feed-forward layers: what can be dropped of a model whole.

A group is what the layers before give and one layer takes: the columns of query, key and value of
one head with the rows of the output matrix, or a column of what goes into a feed-forward layer with
a row of what comes out of it. Where query heads share keys and values, a group is one head of those
with all of its queries, so that grouped-query attention stays what it was.

With the same number of groups left in every block the model is an ordinary one of another width, if
the configuration of its family has a word for it: channels always do, heads where it names the
width of a head (Llama and its kin). In BERT and its kin that width is the hidden size over the
number of heads. A model that lacks heads there, or whose blocks differ, has all its layers of fewer
groups stored as `lpaf_jax.factors.sliced`.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import SettingError
from lpaf_jax.factors import SlicedLinear
from lpaf_jax.factors.sliced import Heads
from lpaf_jax.models.compressible import compressible_layers, place_of
from lpaf_jax.models.functional import layer_at, parameters, replace_layer
from lpaf_jax.models.layers import Linear
from lpaf_jax.models.lora import LoraLinear

Kind = Literal["heads", "channels"]


class Groups(NamedTuple):
    """The heads of one block, or its channels between feed-forward layers.

    Attributes:
        kind: which of the two.
        into: paths of the layers that give them; each group has as many columns of a layer.
        out: path of the layer that takes them, as many rows for each group.
        total: how many there are.
        word: what config.json calls the number of channels.
    """

    kind: Kind
    into: tuple[str, ...]
    out: str
    total: int
    word: str = ""


def groups_of(model: nnx.Module) -> list[Groups]:
    """All groups of a dense model, in the order of its blocks.

    Of GPT-2, which has queries, keys and values in one matrix, there are channels alone.
    """
    found = []
    for path in compressible_layers(parameters(model)):
        place = place_of(path)
        assert place is not None, f"{path} is compressible"
        layout, block, name = place
        if name == layout.output and layout.apart:
            into = tuple(f"{block}.{x}" for x in (layout.queries, layout.keys, layout.values))
            found.append(Groups("heads", into, path, _heads(model, into[1])))
        elif name == layout.out:
            into = tuple(f"{block}.{x}" for x in layout.into)
            count = layer_at(model, path).kernel.shape[0]
            found.append(Groups("channels", into, path, count, layout.width))
    return found


def without_ends(groups: list[Groups]) -> list[Groups]:
    """Those of the blocks that LoRAPrune cuts: all but the first tenth, rounded down, and the last.

    Source: the code of Zhang et al., "LoRAPrune" (2024).
    """
    blocks = list(dict.fromkeys(_block(each) for each in groups))
    spared = {*blocks[: len(blocks) // 10], *blocks[-1:]}
    return [each for each in groups if _block(each) not in spared]


def _block(groups: Groups) -> str:
    place = place_of(groups.out)
    assert place is not None, f"{groups.out} is compressible"
    return place.block


def _heads(model: nnx.Module, keys: str) -> int:
    """How many heads of keys the layer of attention has whose keys are made by the layer at a path.

    That is what it is told of heads, or of their width.
    """
    attention = layer_at(model, keys.rpartition(".")[0])
    if hasattr(attention, "head_dim"):
        return int(layer_at(model, keys).kernel.shape[1] // attention.head_dim)
    return int(attention.heads)


def counts_left(
    model: nnx.Module, groups: list[Groups], share: float, *, heads: bool = True
) -> dict[str, int]:
    """How many groups are left, by the path of the layer that takes them, as many in every block.

    Of heads the share that the blocks of `groups` may keep is left, rounded, and of channels what
    then fits: matrices come to no more than the share of their numbers, and to less by one channel
    of each of these blocks at most.

    Args:
        model: dense.
        groups: those that may go; others count as they are.
        share: of the numbers in all compressible matrices.
        heads: whether heads may go, too.

    Raises:
        SettingError: what may not go is more than that.
    """
    total = _total(model)
    price = dict.fromkeys(("heads", "channels"), 0)
    most = dict(price)
    for each in groups:
        price[each.kind] += _numbers(model, each)
        most[each.kind] = each.total
    fixed = total - sum(price[kind] * most[kind] for kind in price)
    movable = heads and most["heads"] > 0

    def room(left: int) -> int:
        """For channels in each block, beside so many heads."""
        return int((share * total - fixed - left * price["heads"]) // price["channels"])

    of_these = (share * total - fixed) / (total - fixed)
    left = min(most["heads"], max(1, round(of_these * most["heads"]))) if movable else most["heads"]
    while movable and left > 1 and room(left) < 1:
        left -= 1
    while movable and left < most["heads"] and room(left) > most["channels"]:
        left += 1
    if room(left) < 1:
        least = (fixed + left * price["heads"] + price["channels"]) / total
        raise SettingError(
            ("params",),
            f"is {share:g}, but a single channel in every block that may lose any already makes "
            f"{least:.1%} of the weights: give more"
            + ("" if movable or not most["heads"] else ", or drop heads, too (--groups all)"),
        )
    counts = {"heads": left, "channels": min(room(left), most["channels"])}
    return {each.out: counts[each.kind] for each in groups}


def share_left(model: nnx.Module, groups: list[Groups], left: Mapping[str, int]) -> float:
    """The share of the numbers in compressible matrices that so many groups have."""
    total = _total(model)
    gone = sum(_numbers(model, each) * (each.total - left[each.out]) for each in groups)
    return (total - gone) / total


def _total(model: nnx.Module) -> int:
    layers = compressible_layers(parameters(model))
    return sum(int(layer_at(model, path).kernel.size) for path in layers)


def _numbers(model: nnx.Module, groups: Groups) -> int:
    """How many numbers of matrices one group has."""
    paths = (*groups.into, groups.out)
    return sum(int(layer_at(model, path).kernel.size) for path in paths) // groups.total


class GatedLora(LoraLinear):
    """A layer with an adapter, and a gate for each group of what goes into it: `f(g ∘ x)`.

    Gates are 1, or 0 where a group is masked.
    """

    def __init__(self, layer: LoraLinear, count: int):
        super().__init__(layer.base, layer.lora_a[...], layer.lora_b[...], layer.scale)
        self.lora_gate = nnx.Param(jnp.ones(count))

    def _rows(self, x: Array) -> Array:
        gate = self.lora_gate[...].astype(x.dtype)
        return super()._rows(x * jnp.repeat(gate, x.shape[-1] // len(gate)))


def add_gates(model: nnx.Module, groups: list[Groups]) -> None:
    """Give every layer that takes groups their gates; all have adapters already."""
    for each in groups:
        replace_layer(model, each.out, GatedLora(layer_at(model, each.out), each.total))


def drop_groups(model: Any, groups: list[Groups], kept: Mapping[str, Any]) -> None:
    """Take the groups that are not kept out of matrices and biases.

    The model computes what it did with gates of 0 for them. Where its config has words for what it
    is now, `model.resized` holds them for `lpaf_jax.checkpoints.save_model`.

    Args:
        model: dense.
        groups: those there may be fewer of.
        kept: booleans, one for each group, by the path of the layer that takes them.
    """
    left_of = {each.out: np.flatnonzero(np.asarray(kept[each.out])) for each in groups}
    counts: dict[str, set[int]] = {}
    for each in groups_of(model):
        counts.setdefault(each.kind, set()).add(len(left_of.get(each.out, range(each.total))))
    gone = [each for each in groups if len(left_of[each.out]) < each.total]
    words = [_words(model, each, len(left_of[each.out])) for each in gone]
    # All or nothing: what config.json has no word for is recorded beside the shapes that it gives.
    ordinary = all(words) and all(len(found) == 1 for found in counts.values())
    for each in gone:
        left = left_of[each.out]
        for path, side in (*((path, "outputs") for path in each.into), (each.out, "inputs")):
            layer = layer_at(model, path)
            axis = 1 if side == "outputs" else 0
            width = layer.kernel.shape[axis] // each.total
            at = (width * left[:, None] + np.arange(width)).reshape(-1)
            kernel = jnp.take(layer.kernel[...], at, axis=axis)
            bias = None if layer.bias is None else layer.bias[...]
            bias = bias[at] if bias is not None and axis else bias
            if ordinary:
                found: nnx.Module = Linear(kernel, bias)
            elif each.kind == "channels":
                found = SlicedLinear(kernel, bias)
            else:
                widths = [width if index in left else 0 for index in range(each.total)]
                found = SlicedLinear(kernel, bias, Heads(side, width, tuple(widths)))
            replace_layer(model, path, found)
    resized = {name: value for each in words for name, value in each.items()} if ordinary else {}
    model.resized = tuple(sorted(resized.items()))


def _words(model: nnx.Module, groups: Groups, left: int) -> dict[str, int]:
    """What config.json says of a model with so many groups in each block; empty if it cannot."""
    if groups.kind == "channels":
        return {groups.word: left}
    queries, keys = groups.into[:2]
    attention = layer_at(model, keys.rpartition(".")[0])
    if not hasattr(attention, "head_dim"):
        return {}
    width = int(attention.head_dim)
    shared = layer_at(model, queries).kernel.shape[1] // (width * groups.total)
    return {
        "num_attention_heads": left * shared,
        "num_key_value_heads": left,
        "head_dim": width,
    }
