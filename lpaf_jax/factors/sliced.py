"""Fewer channels: a dense weight of which rows, or columns, are gone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.factors.base import FactorKind, Places, Record, StoredAs, register_kind
from lpaf_jax.factors.layer import by_rows, optional, plus


class Heads(NamedTuple):
    """Where the channels that are left lie among those of heads: they are the first of each.

    Attributes:
        side: "inputs" or "outputs" of the layer.
        width: of a head, in the dense model.
        left: how many channels each head has left.
    """

    side: str
    width: int
    left: tuple[int, ...]

    @property
    def places(self) -> np.ndarray:
        """Of the channels that are left, among all."""
        starts = self.width * np.arange(len(self.left))
        return np.concatenate([s + np.arange(n) for s, n in zip(starts, self.left, strict=True)])

    def taken(self, x: Array) -> Array:
        """The channels that are left, of rows of all."""
        # Slices: a gather, and more so its gradient, is slow on a CPU.
        starts = range(0, x.shape[1], self.width)
        parts = [x[:, s : s + n] for s, n in zip(starts, self.left, strict=True)]
        return jnp.concatenate(parts, axis=1)

    def spread(self, x: Array) -> Array:
        """Rows of all channels, of those that are left: zeros for the others."""
        ends = np.cumsum(self.left).tolist()
        parts = [
            jnp.pad(x[:, end - n : end], ((0, 0), (0, self.width - n)))
            for end, n in zip(ends, self.left, strict=True)
        ]
        return jnp.concatenate(parts, axis=1)


class SlicedLinear(nnx.Module):
    """`y = x W + c` of the channels that are left, W of (m', n').

    With `heads` it takes, or gives, those of heads as a dense layer does: `attend` sees heads of
    their whole width, with zeros.
    """

    def __init__(self, w: Array, bias: Array | None, heads: Heads | None = None):
        self.w = nnx.Param(w)
        self.bias = optional(bias)
        self.heads = heads

    def __call__(self, x: Array) -> Array:
        return by_rows(
            x, lambda rows: self.at_heads(rows, lambda left: plus(left @ self.w[...], self.bias))
        )

    def at_heads(self, x: Array, product: Callable[[Array], Array]) -> Array:
        """`product` of the channels that are left, among all of them."""
        heads = self.heads
        if heads is not None and heads.side == "inputs":
            x = heads.taken(x)
        y = product(x)
        return heads.spread(y) if heads is not None and heads.side == "outputs" else y


class SlicedKind(FactorKind):
    """W lies in the file as that of a dense layer does, (n', m') as `weight`.

    It makes sense in layers that follow each other: what one no longer gives, the next one no
    longer takes. Which channels are gone is not kept; as a dense matrix W has zeros for them, in
    the end, or in the end of each head, which is the same model.
    """

    name = "sliced"
    mark = "w"
    torch_file = Path(__file__).with_name("sliced_torch.py")

    def layer(
        self, factors: Mapping[str, Array], bias: Array | None, record: Record
    ) -> SlicedLinear:
        return SlicedLinear(factors["w"], bias, _heads(record))

    def record(self, layer: Any) -> Record:
        inputs, outputs = layer.w.shape
        return self.of_shape(inputs, outputs, layer.heads)

    def of_shape(self, inputs: int, outputs: int, heads: Heads | None = None) -> Record:
        """The record of a layer of that many channels."""
        found: Record = {"kind": self.name, "inputs": int(inputs), "outputs": int(outputs)}
        return found if heads is None else found | {"heads": _as_json(heads)}

    def shapes(self, record: Record, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        left: list[int] = []
        for side, most in zip(_SIDES, shape, strict=True):
            count = record.get(side)
            if not _whole(count, 1, most):
                raise ValueError(f"has {count!r} {side}, which must be a number from 1 to {most}")
            left.append(count)
        heads = record.get("heads")
        if heads is not None and not _fits(heads, record, shape):
            raise ValueError(f"has heads {heads!r}, which are not those of {left} of {list(shape)}")
        return {"w": tuple(left)}

    def stored(self, leaf: str) -> StoredAs | None:
        return StoredAs("weight", True) if leaf == "w" else None

    def dense(self, factors: Mapping[str, Any]) -> Any:
        return factors["w"]

    def places(self, record: Record, shape: tuple[int, int]) -> Places:
        found = [np.arange(count) for count in self.shapes(record, shape)["w"]]
        heads = _heads(record)
        if heads is not None:
            found[_SIDES.index(heads.side)] = heads.places
        return Places(*found)

    def flop(self, record: Record, shape: tuple[int, int]) -> int:
        return 2 * self.size(record, shape)

    def summary(self, record: Record) -> str:
        return f"{record['inputs']}×{record['outputs']}"

    def empty(self, record: Record, shape: tuple[int, int], *, bias: bool) -> nnx.Module:
        left = self.shapes(record, shape)["w"]
        return self.layer({"w": jnp.zeros(left)}, jnp.zeros(left[1]) if bias else None, record)


_SIDES = ("inputs", "outputs")


def _whole(x: Any, least: int, most: int) -> TypeGuard[int]:
    return isinstance(x, int) and not isinstance(x, bool) and least <= x <= most


def _heads(record: Record) -> Heads | None:
    found = record.get("heads")
    return None if found is None else Heads(found["side"], found["width"], tuple(found["left"]))


def _as_json(heads: Heads) -> dict[str, Any]:
    left = [int(count) for count in heads.left]
    return {"side": heads.side, "width": int(heads.width), "left": left}


def _fits(heads: Any, record: Record, shape: tuple[int, int]) -> bool:
    """Whether what a file says of heads can be read, and goes with the rest of the record."""
    if not isinstance(heads, Mapping) or heads.get("side") not in _SIDES:
        return False
    side, width, left = heads["side"], heads.get("width"), heads.get("left")
    most = shape[_SIDES.index(side)]
    if not _whole(width, 1, most) or not isinstance(left, list):
        return False
    if not all(_whole(count, 0, width) for count in left):
        return False
    return len(left) * width == most and sum(left) == record[side]


SLICED = SlicedKind()
register_kind(SLICED)
