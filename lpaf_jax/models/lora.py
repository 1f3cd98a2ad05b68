"""Adapters of low rank: layers that stay as they are, and two thin matrices beside each.

```python
model = load_model(folder, head="lm")
add_adapters(model, 8)
parameters(model)      # A and B of every compressible layer, and nothing else
fixed_arrays(model)    # all other numbers
merge_adapters(model)  # W + s A B in every place: a model as it was before
```

Source: Hu et al., "LoRA: low-rank adaptation of large language models" (2021); scales by √r are of
Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA" (2023).
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors import LowRankLinear, SlicedLinear
from lpaf_jax.factors.layer import by_rows, plus
from lpaf_jax.linalg import LowRank
from lpaf_jax.models.compressible import compressible_layers
from lpaf_jax.models.functional import layer_at, parameters, replace_layer
from lpaf_jax.models.layers import Frozen, Linear, Quantized

Base = Linear | SlicedLinear


class LoraLinear(nnx.Module):
    """`y = f(x) + s (x A) B`, of a layer f that is not trained: A is (m, r) and B is (r, n).

    A token costs `2r(m + n)` FLOP beside those of f, and no gradient of W is ever made.
    """

    def __init__(self, base: Base, a: Array, b: Array, scale: float):
        self.base = base
        self.lora_a = nnx.Param(a)
        self.lora_b = nnx.Param(b)
        self.scale = scale

    def __call__(self, x: Array) -> Array:
        return by_rows(x, self._rows)

    def _rows(self, x: Array) -> Array:
        base = self.base
        return (
            base.at_heads(x, self._product) if isinstance(base, SlicedLinear) else self._product(x)
        )

    def _product(self, x: Array) -> Array:
        weight = _weight(self.base)
        y = weight.product(x) if isinstance(weight, Quantized) else x @ weight[...]
        change = self.scale * ((x @ self.lora_a[...]) @ self.lora_b[...])
        return plus(y, self.base.bias) + change.astype(y.dtype)

    def merged(self) -> Base:
        """The layer alone, with `W + s A B` for its W, and trainable again."""
        weight = _weight(self.base)
        change = self.scale * (self.lora_a[...] @ self.lora_b[...])
        found = weight[...].astype(change.dtype) + change
        bias = None if self.base.bias is None else self.base.bias[...]
        if isinstance(self.base, SlicedLinear):
            return SlicedLinear(found, bias, self.base.heads)
        return Linear(found, bias)


class LoraFactors(nnx.Module):
    """`y = (x (A + s A₁B₁)) (B + s A₂B₂) + c`: two thin factors, each with an adapter of its own.

    One beside both would make a merged layer of a rank that is larger by its own.
    """

    def __init__(self, down: Linear | LoraLinear, up: Linear | LoraLinear):
        self.down = down
        self.up = up

    def __call__(self, x: Array) -> Array:
        return by_rows(x, lambda rows: self.up(self.down(rows)))

    def merged(self) -> LowRankLinear:
        """The factors alone, and trainable again."""
        down, up = (x.merged() if isinstance(x, LoraLinear) else x for x in (self.down, self.up))
        factors = LowRank(_weight(down)[...], _weight(up)[...])
        return LowRankLinear(factors, None if up.bias is None else up.bias[...])


class Update(NamedTuple):
    """What an adapter adds to a matrix, `s A B`.

    Attributes:
        a: (m, r).
        b: (r, n).
        scale: s; PEFT calls `s r` lora_alpha.
    """

    a: Array
    b: Array
    scale: float


def add_adapters(
    model: nnx.Module,
    rank: int,
    *,
    scale: float = 2.0,
    seed: int = 0,
    narrow: Any = None,
    four_bits: bool = False,
) -> None:
    """Give all compressible layers of `model` adapters, and fix all else: it computes what it did.

    A is uniform within `±1/√m` and B is 0, as in PEFT. A layer of two factors gets an adapter for
    each of them.

    Args:
        rank: r of each adapter.
        scale: s of each.
        seed: of A.
        narrow: dtype in which the matrices that are fixed are held; None leaves them.
        four_bits: hold those beside adapters in NF4, which changes what the model computes.

    Raises:
        LpafError: a layer is neither dense nor of two factors.
        ValueError: the rank is not at least 1.
    """
    if rank < 1:
        raise ValueError(f"the rank of adapters must be at least 1, got {rank}")
    key = jax.random.key(seed)
    drawn: dict[str, Update] = {}
    for layer in compressible_layers(parameters(model)):
        found = adaptable(layer_at(model, layer), layer)
        if not found:
            raise LpafError(
                f"{layer} is a {type(layer_at(model, layer)).__name__}, which cannot have an "
                "adapter: only dense layers and two thin factors can"
            )
        for path, (m, n) in found.items():
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            a = jax.random.uniform(own, (m, rank), minval=-1, maxval=1) / math.sqrt(m)
            drawn[path] = Update(a, jnp.zeros((rank, n)), scale)
    put_adapters(model, drawn)
    freeze(model, narrow)
    if four_bits:
        for beside in adapters(model).values():
            leaf = "w" if isinstance(beside.base, SlicedLinear) else "kernel"
            setattr(beside.base, leaf, Quantized.of(_weight(beside.base)[...]))


def put_adapters(model: nnx.Module, given: Mapping[str, Update]) -> None:
    """Put an adapter beside each layer named, and fix nothing.

    Args:
        given: by path; of the factors of a layer PATH.down and PATH.up, one or both.
    """
    for path, update in given.items():
        parent, _, half = path.rpartition(".")
        owner = layer_at(model, parent)
        if isinstance(owner, LowRankLinear):
            owner = LoraFactors(*_halves(owner))
            replace_layer(model, parent, owner)
        setattr(owner, half, LoraLinear(layer_at(model, path), *update))


def adaptable(layer: nnx.Module, path: str) -> dict[str, tuple[int, int]]:
    """(m, n) of what in the layer at `path` can have an adapter, by path; empty if nothing can."""
    if isinstance(layer, LowRankLinear):
        halves = zip(("down", "up"), _halves(layer), strict=True)
        return {f"{path}.{name}": _weight(half).shape for name, half in halves}
    if isinstance(layer, Linear | SlicedLinear):
        m, n = _weight(layer).shape
        return {path: (m, n)}
    return {}


def _halves(layer: LowRankLinear) -> tuple[Linear, Linear]:
    """A layer of two factors as the two linear ones that it is in PyTorch."""
    bias = None if layer.bias is None else layer.bias[...]
    return Linear(layer.a[...], None), Linear(layer.b[...], bias)


def adapters(model: nnx.Module) -> dict[str, LoraLinear]:
    """The layers that have an adapter, by path; of two factors PATH.down and PATH.up."""
    found = {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, LoraLinear)
    }
    return dict(sorted(found.items()))


def updates(model: nnx.Module) -> dict[str, Update]:
    """What the adapters of `model` add, by path; see `put_adapters`."""
    return {
        path: Update(layer.lora_a[...], layer.lora_b[...], layer.scale)
        for path, layer in adapters(model).items()
    }


def merge_adapters(model: nnx.Module) -> None:
    """Put `W + s A B` into every layer that has an adapter; all parameters are trainable again."""
    found = {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, LoraLinear | LoraFactors)
    }
    pairs = [path for path, layer in found.items() if isinstance(layer, LoraFactors)]
    inside = {f"{path}.{half}" for path in pairs for half in ("down", "up")}
    for path in found.keys() - inside:
        replace_layer(model, path, found[path].merged())
    thaw(model)


def freeze(model: nnx.Module, narrow: Any = None) -> None:
    """Fix every parameter of `model` but those of adapters; see `fixed_arrays`.

    Args:
        narrow: dtype of matrices from here on; None leaves them.
    """
    for _, module in nnx.iter_modules(model):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Param) and not name.startswith("lora_"):
                array = value.get_value()
                fits = narrow is None or array.ndim < 2
                setattr(module, name, Frozen(array if fits else array.astype(narrow)))


def train_half(model: nnx.Module, half: str) -> None:
    """Let only one of the two adapters of each factorized layer be trained, "down" or "up".

    A dense layer has one adapter, which is trained in any case.
    """
    for path, layer in adapters(model).items():
        owner = layer_at(model, path.rpartition(".")[0])
        rests = isinstance(owner, LoraFactors) and not path.endswith(f".{half}")
        for name in ("lora_a", "lora_b"):
            setattr(layer, name, (Frozen if rests else nnx.Param)(getattr(layer, name)[...]))


def thaw(model: nnx.Module) -> None:
    """Let every parameter of `model` be trained, in float32."""
    for _, module in nnx.iter_modules(model):
        for name, value in list(vars(module).items()):
            if isinstance(value, Frozen):
                setattr(module, name, nnx.Param(value.get_value().astype(jnp.float32)))


def _weight(layer: Base) -> Any:
    """W as a variable."""
    return layer.w if isinstance(layer, SlicedLinear) else layer.kernel
