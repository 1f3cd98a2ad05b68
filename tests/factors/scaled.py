"""A kind of factors as somebody would add it: rows of the dense weight times a number each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax import Array

from lpaf_jax.factors import FactorKind, Record, StoredAs


class ScaledLinear(nnx.Module):
    """`y = (s ∘ x) W + c`."""

    def __init__(self, kernel: Array, scale: Array, bias: Array | None):
        self.kernel = nnx.Param(kernel)
        self.row_scale = nnx.Param(scale)
        self.bias = None if bias is None else nnx.Param(bias)

    def __call__(self, x: Array) -> Array:
        y = (x * self.row_scale[...]) @ self.kernel[...]
        return y if self.bias is None else y + self.bias[...]


class Scaled(FactorKind):
    """Its kernel and its bias lie in the file as those of a dense layer do."""

    name = "scaled"
    mark = "row_scale"
    torch_file = Path(__file__).with_name("scaled_torch.py")

    def layer(
        self, factors: Mapping[str, Array], bias: Array | None, record: Record
    ) -> ScaledLinear:
        return ScaledLinear(factors["kernel"], factors["row_scale"], bias)

    def record(self, layer: Any) -> Record:
        return {"kind": self.name, "inputs": layer.row_scale.shape[0]}

    def shapes(self, record: Record, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        if record.get("inputs") != shape[0]:
            raise ValueError(f"has {record.get('inputs')} inputs in place of {shape[0]}")
        return {"row_scale": (shape[0],), "kernel": shape}

    def stored(self, leaf: str) -> StoredAs | None:
        return StoredAs("rows.scale", False) if leaf == "row_scale" else None

    def dense(self, factors: Mapping[str, Any]) -> Any:
        return factors["row_scale"][:, None] * factors["kernel"]

    def flop(self, record: Record, shape: tuple[int, int]) -> int:
        return shape[0] + 2 * shape[0] * shape[1]

    def summary(self, record: Record) -> str:
        return "by rows"
