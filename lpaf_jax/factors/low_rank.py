"""Two thin factors: `W ≈ A B`, with k (m + n) numbers in place of m n."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax import Array

from lpaf_jax.factors.base import FactorKind, Record, StoredAs, register_kind
from lpaf_jax.factors.layer import by_rows, optional, plus
from lpaf_jax.linalg import LowRank


class LowRankLinear(nnx.Module):
    """`y = (x A) B + c`: `2k(m + n)` FLOP a token in place of `2mn`."""

    def __init__(self, factors: LowRank, bias: Array | None):
        self.a = nnx.Param(factors.a)
        self.b = nnx.Param(factors.b)
        self.bias = optional(bias)

    def __call__(self, x: Array) -> Array:
        factors = LowRank(self.a[...], self.b[...])
        return by_rows(x, lambda rows: plus(factors.apply(rows), self.bias))


class RankedKind(FactorKind):
    """A kind whose record is its rank."""

    def of_rank(self, rank: int) -> Record:
        """The record of a layer of that rank."""
        return {"kind": self.name, "rank": int(rank)}

    def summary(self, record: Record) -> str:
        return str(record["rank"])


class LowRankKind(RankedKind):
    """A, (m, k), lies in the file as `down.weight`, (k, m), and B, (k, n), as `up.weight`, (n, k).

    These are two `Linear`s in PyTorch, of which the second has the bias.
    """

    name = "low_rank"
    mark = "a"
    solution = LowRank
    leaves = ("a", "b")
    torch_file = Path(__file__).with_name("low_rank_torch.py")

    def layer(
        self, factors: Mapping[str, Array], bias: Array | None, record: Record
    ) -> LowRankLinear:
        return LowRankLinear(LowRank(factors["a"], factors["b"]), bias)

    def record(self, layer: Any) -> Record:
        return self.of_rank(layer.a.shape[1])

    def shapes(self, record: Record, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        (m, n), rank = shape, rank_in(record)
        return {"a": (m, rank), "b": (rank, n)}

    def stored(self, leaf: str) -> StoredAs | None:
        return {
            "a": StoredAs("down.weight", True),
            "b": StoredAs("up.weight", True),
            "bias": StoredAs("up.bias", False),
        }.get(leaf)

    def dense(self, factors: Mapping[str, Any]) -> Any:
        return factors["a"] @ factors["b"]

    def flop(self, record: Record, shape: tuple[int, int]) -> int:
        return 2 * self.size(record, shape)


def rank_in(record: Record) -> int:
    """The rank that a record speaks of.

    Raises:
        ValueError: see `FactorKind.shapes`.
    """
    rank = record.get("rank")
    if rank is None:
        raise ValueError("has no rank")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"has rank {rank!r}, which must be a whole number of at least 1")
    return rank


LOW_RANK = LowRankKind()
register_kind(LOW_RANK)
