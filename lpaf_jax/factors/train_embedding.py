"""A table of embeddings in which every row is a tensor train of its own."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.factors.base import Record, StoredAs, register_kind
from lpaf_jax.factors.layer import rows_of
from lpaf_jax.factors.low_rank import RankedKind, rank_in
from lpaf_jax.linalg import tensor_train

# Rows that a tied head rebuilds at a time.
_ROWS = 4096


class TrainEmbedding(nnx.Module):
    """Row v is the train of cores `G_i[v]`, (r_{i−1}, d_i, r_i), with Π d_i = H.

    The cores of the rows that are asked for are gathered, and contracted.

    Source: Xu et al., "TensorGPT" (2023).
    """

    def __init__(self, cores: Mapping[str, Array]):
        for leaf, core in cores.items():
            setattr(self, leaf, nnx.Param(core))
        self.count = len(cores)

    @property
    def cores(self) -> list[Array]:
        """G, (V, r, d, s) each."""
        return [getattr(self, leaf)[...] for leaf in _leaves(self.count)]

    def __call__(self, index: Array) -> Array:
        found = contracted([rows_of(core, index.reshape(-1)) for core in self.cores])
        return found.reshape(*index.shape, -1)

    def scores(self, x: Array) -> Array:
        """`x Tᵀ`: (..., H) to (..., V). The rows of T are rebuilt, some thousand at a time."""
        rows, cores = x.reshape(-1, x.shape[-1]), tuple(self.cores)

        def of_row(cores: tuple[Array, ...]) -> Array:
            return rows @ contracted([core[None] for core in cores])[0]

        # Rebuilt for the gradient, too: kept, they would be the table that was to be saved.
        found = jax.lax.map(jax.checkpoint(of_row), cores, batch_size=_ROWS)
        return found.T.reshape(*x.shape[:-1], -1)


def contracted(cores: list[Any]) -> Any:
    """(V, Π d) of cores (V, r, d, s), arrays of numpy or of JAX."""
    found, *rest = cores
    for core in rest:
        count, rank, _, _ = core.shape
        whole = found.reshape(count, -1, rank) @ core.reshape(count, rank, -1)
        found = whole.reshape(count, 1, -1, core.shape[-1])
    return found.reshape(found.shape[0], -1)


class TrainEmbeddingKind(RankedKind):
    """The cores lie in the file as `core_1`, `core_2`, ..., (V, r, d, s), as they are."""

    name = "train_embedding"
    mark = "core_1"
    replaces = "weight"
    torch_file = Path(__file__).with_name("train_embedding_torch.py")

    def layer(
        self, factors: Mapping[str, Array], bias: Array | None, record: Record
    ) -> TrainEmbedding:
        return TrainEmbedding({leaf: factors[leaf] for leaf in _leaves(len(factors))})

    def record(self, layer: Any) -> Record:
        cores = layer.cores
        most = max(core.shape[-1] for core in cores)
        return self.of_rank(most) | {"digits": [core.shape[2] for core in cores]}

    def shapes(self, record: Record, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        (rows, hidden), rank, digits = shape, rank_in(record), record.get("digits")
        if not isinstance(digits, list) or not all(type(d) is int and d > 0 for d in digits):
            raise ValueError(f"has digits {digits!r}, which must be whole numbers")
        if math.prod(digits) != hidden:
            raise ValueError(f"has digits {digits!r}, whose product is not {hidden}")
        ranks = train_ranks(digits, rank)
        sizes = zip(_leaves(len(digits)), ranks, digits, ranks[1:], strict=False)
        return {leaf: (rows, left, digit, right) for leaf, left, digit, right in sizes}

    def stored(self, leaf: str) -> StoredAs | None:
        return StoredAs(leaf, False) if leaf.startswith("core_") else None

    def dense(self, factors: Mapping[str, Any]) -> Any:
        return contracted([factors[leaf] for leaf in _leaves(len(factors))])

    def rows_for(
        self, factors: Mapping[str, np.ndarray], record: Record, vectors: np.ndarray
    ) -> dict[str, np.ndarray]:
        cores = split(jnp.asarray(vectors), tuple(record["digits"]), record["rank"])
        return {leaf: np.asarray(core) for leaf, core in cores.items()}

    def flop(self, record: Record, shape: tuple[int, int]) -> int:
        found, before = 0, 1
        for _, rank, digit, after in self.shapes(record, shape).values():
            found += 2 * before * rank * digit * after if before > 1 else 0
            before *= digit
        return found


@partial(jax.jit, static_argnums=(1, 2))
def split(rows: Array, digits: tuple[int, ...], rank: int) -> dict[str, Array]:
    """Every row, (n, H), as a train of its own, by leaf."""

    def of_row(row: Array) -> tuple[Array, ...]:
        return tensor_train(row[None], ((1,) * len(digits), digits), rank).cores

    found = jax.vmap(of_row)(rows)
    # Of a row there is one index of rows, of 1.
    return {leaf: core[:, :, 0] for leaf, core in zip(_leaves(len(digits)), found, strict=True)}


def train_ranks(digits: list[int], most: int) -> list[int]:
    """r_0, r_1, ..., of a train: 1 at both ends, else as much as its sides allow, up to `most`."""
    cuts = range(1, len(digits))
    inner = [min(most, math.prod(digits[:i]), math.prod(digits[i:])) for i in cuts]
    return [1, *inner, 1]


def _leaves(count: int) -> list[str]:
    return [f"core_{i}" for i in range(1, count + 1)]


register_kind(TrainEmbeddingKind())
