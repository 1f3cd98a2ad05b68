"""What a kind of factors has to say of itself, and the kinds there are."""

import math
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.registry import Registry

# What config.json says of a factorized layer: `{"kind": "low_rank", "rank": 64}`.
Record = dict[str, Any]


class StoredAs(NamedTuple):
    """How a parameter of a layer lies in the file.

    Attributes:
        name: below the path of the layer, as PyTorch calls it: "down.weight".
        turned: whether it is transposed there.
    """

    name: str
    turned: bool


class Places(NamedTuple):
    """Where the rows and the columns of a matrix lie in a larger one, zeros elsewhere."""

    rows: np.ndarray
    columns: np.ndarray


class FactorKind(ABC):
    """What takes the place of a dense weight `W`, (m, n): of `y = x W + c`, or a table of rows.

    Parameters are known by their leaf, the name of an attribute of the Flax layer: "a" of
    `encoder.layer.0.output.dense.a`. A layer has them itself, and none below them.

    Attributes:
        name: in config.json, and of the function in `torch_file`.
        mark: a leaf that layers of this kind have, and no other layer has.
        replaces: leaf of the dense weight.
        solution: a NamedTuple of factors that solvers give, of which this is the layer; its fields
            are those of `leaves`, in this order. None where no solver gives one.
        leaves: of the factors.
        torch_file: source for PyTorch. It defines `NAME(layer, record) -> nn.Module`, from the
            dense layer, a `Linear`, the `Conv1D` of GPT-2 or an `Embedding`, to a layer whose
            parameters have the names that `stored` gives. If that has a `tie(model)`, it is called
            once the layer is in its place: a table gives a head that is tied to it its factors, as
            its `scores` do here. It is put into the modelling file that travels with the weights,
            and so imports by `from torch import ...` or of the standard library, and nothing else;
            other names that it defines begin with that of the kind.
    """

    name: str
    mark: str
    torch_file: Path
    replaces: str = "kernel"
    solution: type | None = None
    leaves: tuple[str, ...] = ()

    @abstractmethod
    def layer(self, factors: Mapping[str, Array], bias: Array | None, record: Record) -> nnx.Module:
        """The layer `x: (..., m) -> (..., n)` of factors by leaf."""

    @abstractmethod
    def record(self, layer: Any) -> Record:
        """What config.json says of a layer of this kind, `kind` included."""

    @abstractmethod
    def shapes(self, record: Record, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Shapes of the factors by leaf, in the place of a weight of `shape`, (m, n).

        Raises:
            ValueError: the record is none of this kind, or does not fit; the message ends a
                sentence that begins with the layer: "has no rank".
        """

    @abstractmethod
    def stored(self, leaf: str) -> StoredAs | None:
        """How a factor, or "bias", lies in the file; None: as in a dense layer."""

    def rows_for(
        self, factors: Mapping[str, np.ndarray], record: Record, vectors: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Of a table: what more rows, nearest to `vectors`, (n, H), add to which factors.

        Raises:
            TypeError: the kind is none of a table.
            LpafError: no row can be added without a change to others.
        """
        raise TypeError(f"{self.name} is not a kind of embedding table, so it cannot get more rows")

    def filed(self, leaf: str, x: np.ndarray) -> np.ndarray:
        """A factor that `stored` speaks of, or the bias: from here to the file, or back."""
        stored = self.stored(leaf)
        return x.T if stored is not None and stored.turned else x

    @abstractmethod
    def dense(self, factors: Mapping[str, Any]) -> Any:
        """`W`, (m, n), of factors by leaf, arrays of numpy or of JAX as these are.

        It may have fewer rows or columns: see `places`. A table may have more rows, at its end.
        """

    def places(self, record: Record, shape: tuple[int, int]) -> Places:
        """Where the rows and columns that `dense` gives lie in the W of `shape`, (m, n)."""
        return Places(*map(np.arange, shape))

    @abstractmethod
    def flop(self, record: Record, shape: tuple[int, int]) -> int:
        """Floating-point operations a token, without the bias."""

    @abstractmethod
    def summary(self, record: Record) -> str:
        """What of a record is shown in a table, in a few letters."""

    def empty(self, record: Record, shape: tuple[int, int], *, bias: bool) -> nnx.Module:
        """A layer of zeros, for numbers that are still to come.

        Raises:
            ValueError: see `shapes`.
        """
        factors = {leaf: jnp.zeros(size) for leaf, size in self.shapes(record, shape).items()}
        return self.layer(factors, jnp.zeros(shape[1]) if bias else None, record)

    def size(self, record: Record, shape: tuple[int, int]) -> int:
        """How many numbers are stored, without the bias.

        Raises:
            ValueError: see `shapes`.
        """
        return sum(math.prod(size) for size in self.shapes(record, shape).values())


KINDS: Registry[FactorKind] = Registry("kind of factors", FactorKind)


def register_kind(kind: FactorKind) -> FactorKind:
    """Let all that reads and writes models know of `kind`, and return it.

    Raises:
        LpafError: its name or its mark is taken.
    """
    other = kind_by_mark(kind.mark) if isinstance(kind, FactorKind) else None
    if other is not None and other is not kind:
        raise LpafError(f"kind of factors {kind.name!r}: {kind.mark!r} marks {other.name} already")
    return KINDS.register(kind)


def kind_by_mark(leaf: str) -> FactorKind | None:
    """The kind whose mark `leaf` is."""
    return next((kind for kind in KINDS.values() if kind.mark == leaf), None)


def kind_of(solution: Any) -> FactorKind:
    """The kind whose layer is made of what a solver gave.

    Raises:
        TypeError: there is none.
    """
    found = next((kind for kind in KINDS.values() if kind.solution is type(solution)), None)
    if found is None:
        raise TypeError(f"no kind of factors stores a {type(solution).__name__}")
    return found


def kind_at(layer: str, paths: Container[str]) -> FactorKind | None:
    """The kind of the layer at a path, whose parameters are among `paths`; None: it is dense."""
    return next((kind for kind in KINDS.values() if f"{layer}.{kind.mark}" in paths), None)
