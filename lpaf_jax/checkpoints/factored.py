"""The factorized layers of a model: from their records to the layers, and back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from lpaf_jax.checkpoints.names import file_name
from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors import KINDS, FactorKind, Record, kind_at, kind_by_mark
from lpaf_jax.models.functional import Params, layer_at, parameters, replace_layer


class Factored(NamedTuple):
    """What a layer became.

    Attributes:
        kind: of its factors.
        record: that config.json has of it.
        shape: (m, n) of the dense weight.
    """

    kind: FactorKind
    record: Record
    shape: tuple[int, int]

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the factors by leaf."""
        return self.kind.shapes(self.record, self.shape)

    def whole(self, factors: Mapping[str, Any]) -> np.ndarray:
        """W, (m, n), of factors by leaf: zeros for the channels that are gone, in float32."""
        found = np.zeros(self.shape, np.float32)
        rows, columns = self.kind.places(self.record, self.shape)
        # The grid of a sum of Kronecker products may have more rows than there are tokens.
        found[np.ix_(rows, columns)] = self.kind.dense(factors)[: len(rows)]
        return found

    def whole_bias(self, bias: np.ndarray) -> np.ndarray:
        """The bias, (n,), zeros for the channels that are gone."""
        found = np.zeros(self.shape[1], bias.dtype)
        found[self.kind.places(self.record, self.shape).columns] = bias
        return found

    def read(self, path: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Factors, and the bias where there is one, by leaf, of a file's tensors, in float32."""
        return {
            leaf: self.kind.filed(leaf, tensors[name]).astype(np.float32)
            for leaf, name in self.names(path).items()
            if name in tensors
        }

    def names(self, path: str) -> dict[str, str]:
        """Names in the file of the factors, and of the bias, of the layer at `path`, by leaf."""
        paths = [f"{path}.{leaf}" for leaf in (*self.sizes(), "bias")]
        return {full.rpartition(".")[2]: file_name(full, paths) for full in paths}


def records_of(model: nnx.Module) -> dict[str, Record]:
    """The records of the factorized layers of `model`, by path; empty where it is dense."""
    found: dict[str, Record] = {}
    for path in parameters(model):
        layer, _, leaf = path.rpartition(".")
        if kind_by_mark(leaf) is not None:
            found[layer] = record_of(layer_at(model, layer))
    return found


def record_of(layer: nnx.Module) -> Record:
    """The record of a layer of factors."""
    marks = (kind_by_mark(leaf) for leaf in parameters(layer))
    kind = next(kind for kind in marks if kind is not None)
    return kind.record(layer)


def factored(
    model: nnx.Module, records: Mapping[str, Record], where: object
) -> dict[str, Factored]:
    """What the layers of a dense model are to become, by path.

    Args:
        model: maybe of shapes alone.
        records: from `lpaf_jax.factors.read_records`.
        where: what a message calls its folder.

    Raises:
        LpafError: there is no such layer, or a record does not fit its layer.
    """
    dense = parameters(model)
    found = {}
    for path, record in records.items():
        kind = KINDS[record["kind"]]
        weight = dense.get(f"{path}.{kind.replaces}")
        if weight is None:
            raise LpafError(
                f"{where}: config.json has factors ({kind.name}) for {path}, but the model has no "
                "such layer"
            )
        m, n = weight.shape
        found[path] = Factored(kind, record, (m, n))
        try:
            found[path].sizes()
        except ValueError as error:
            raise LpafError(f"{where}: config.json: {path}, of kind {kind.name}, {error}") from None
    return found


def put_empty(model: nnx.Module, layers: Mapping[str, Factored]) -> None:
    """Put layers of factors, shapes alone, in the place of dense ones."""
    for path, (kind, record, shape) in layers.items():
        bias = getattr(layer_at(model, path), "bias", None) is not None

        def empty(
            kind: FactorKind = kind,
            record: Record = record,
            shape: tuple[int, int] = shape,
            bias: bool = bias,
        ) -> nnx.Module:
            return kind.empty(record, shape, bias=bias)

        replace_layer(model, path, nnx.eval_shape(empty))


def factors_at(params: Params, layer: str) -> tuple[FactorKind | None, Params]:
    """The kind of the layer at a path, None where it is dense, and its parameters by leaf."""
    start = f"{layer}."
    found = {path.removeprefix(start): x for path, x in params.items() if path.startswith(start)}
    return kind_at(layer, params), found


def dense_matrix(params: Params, layer: str) -> Any:
    """The matrix (m, n) of a linear layer, of factors their product."""
    kind, found = factors_at(params, layer)
    return found["kernel"] if kind is None else kind.dense(found)
