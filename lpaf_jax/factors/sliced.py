"""Fewer channels: a dense weight of which rows, or columns, are gone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.factors.base import FactorKind, Record, StoredAs, register
from lpaf_jax.factors.layer import by_rows, optional, plus


class SlicedLinear(nnx.Module):
    """`y = x W + c` of the channels that are left, W of (m', n')."""

    def __init__(self, w: Array, bias: Array | None):
        self.w = nnx.Param(w)
        self.bias = optional(bias)

    def __call__(self, x: Array) -> Array:
        return by_rows(x, lambda rows: plus(rows @ self.w[...], self.bias))


class SlicedKind(FactorKind):
    """W lies in the file as that of a dense layer does, (n', m') as `weight`.

    It makes sense in layers that follow each other: what one no longer gives, the next one no
    longer takes. Which channels are gone is not kept; as a dense matrix W has zeros for them, in
    the end, which is the same model.
    """

    name = "sliced"
    mark = "w"
    torch_file = Path(__file__).with_name("sliced_torch.py")

    def layer(self, factors: Mapping[str, Array], bias: Array | None) -> SlicedLinear:
        return SlicedLinear(factors["w"], bias)

    def record(self, layer: Any) -> Record:
        return self.of_shape(*layer.w.shape)

    def of_shape(self, inputs: int, outputs: int) -> Record:
        """The record of a layer of that many channels."""
        return {"kind": self.name, "inputs": int(inputs), "outputs": int(outputs)}

    def shapes(self, record: Record, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        left = []
        for side, most in zip(("inputs", "outputs"), shape, strict=True):
            count = record.get(side)
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= most:
                raise ValueError(f"has {count!r} {side}, which must be a number from 1 to {most}")
            left.append(count)
        return {"w": tuple(left)}

    def stored(self, leaf: str) -> StoredAs | None:
        return StoredAs("weight", True) if leaf == "w" else None

    def dense(self, factors: Mapping[str, Any]) -> Any:
        return factors["w"]

    def flop(self, record: Record, shape: tuple[int, int]) -> int:
        return 2 * self.size(record, shape)

    def summary(self, record: Record) -> str:
        return f"{record['inputs']}×{record['outputs']}"

    def empty(self, record: Record, shape: tuple[int, int], *, bias: bool) -> nnx.Module:
        left = self.shapes(record, shape)["w"]
        return self.layer({"w": jnp.zeros(left)}, jnp.zeros(left[1]) if bias else None)


SLICED = SlicedKind()
register(SLICED)
