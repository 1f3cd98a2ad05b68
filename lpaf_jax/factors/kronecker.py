"""A sum of Kronecker products: `W ≈ Σ_t A_t ⊗ B_t`, r (m1 n1 + m2 n2) numbers for m1 m2 n1 n2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax import Array

from lpaf_jax.factors.base import FactorKind, Record, StoredAs, register_kind
from lpaf_jax.factors.layer import by_rows, optional, plus
from lpaf_jax.factors.low_rank import rank_in
from lpaf_jax.linalg import Kronecker


class KroneckerLinear(nnx.Module):
    """`y = x (Σ_t A_t ⊗ B_t) + c`, A (r, m1, n1) and B (r, m2, n2).

    Factors are applied one after the other where that is cheaper for as many tokens as there are;
    else W is built from them once, with r m n multiplications, and applied.

    Source: Panahi et al., "Shapeshifter" (2021), which trains such layers from the start.
    """

    def __init__(self, factors: Kronecker, bias: Array | None):
        self.outer = nnx.Param(factors.a)
        self.inner = nnx.Param(factors.b)
        self.bias = optional(bias)

    def __call__(self, x: Array) -> Array:
        return by_rows(x, lambda rows: plus(self._product(rows), self.bias))

    def _product(self, rows: Array) -> Array:
        factors, tokens = Kronecker(self.outer[...], self.inner[...]), rows.shape[0]
        (_, m1, n1), (_, m2, n2) = factors.a.shape, factors.b.shape
        size = m1 * m2 * n1 * n2
        more = factors.cost - size
        # In a program for any number of tokens that is no int; it is taken to be large.
        if more > 0 and (not isinstance(tokens, int) or tokens * more > factors.rank * size):
            return rows @ factors.dense()
        return factors.apply(rows)


class KroneckerKind(FactorKind):
    """A lies in the file as `outer`, (r, m1, n1), and B as `inner`, (r, m2, n2), as they are."""

    name = "kronecker"
    mark = "outer"
    solution = Kronecker
    leaves = ("outer", "inner")
    torch_file = Path(__file__).with_name("kronecker_torch.py")

    def layer(
        self, factors: Mapping[str, Array], bias: Array | None, record: Record
    ) -> KroneckerLinear:
        return KroneckerLinear(Kronecker(factors["outer"], factors["inner"]), bias)

    def record(self, layer: Any) -> Record:
        (rank, *outer), (_, *inner) = layer.outer.shape, layer.inner.shape
        return {"kind": self.name, "rank": rank, "outer": outer, "inner": inner}

    def shapes(self, record: Record, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        rank, (m1, n1), (m2, n2) = rank_in(record), _sides(record, "outer"), _sides(record, "inner")
        if (m1 * m2, n1 * n2) != tuple(shape):
            raise ValueError(f"has {[m1, n1]} ⊗ {[m2, n2]}, which is not of shape {list(shape)}")
        return {"outer": (rank, m1, n1), "inner": (rank, m2, n2)}

    def stored(self, leaf: str) -> StoredAs | None:
        return StoredAs(leaf, False) if leaf in ("outer", "inner") else None

    def dense(self, factors: Mapping[str, Any]) -> Any:
        a, b = factors["outer"], factors["inner"]
        (rank, m1, n1), (_, m2, n2) = a.shape, b.shape
        blocks = a.reshape(rank, -1).T @ b.reshape(rank, -1)
        return blocks.reshape(m1, n1, m2, n2).transpose(0, 2, 1, 3).reshape(m1 * m2, n1 * n2)

    def flop(self, record: Record, shape: tuple[int, int]) -> int:
        """Of the cheaper way where tokens are many: building W is not counted."""
        outer, inner = self.shapes(record, shape).values()
        return 2 * min(Kronecker.cost_of(outer, inner), shape[0] * shape[1])

    def summary(self, record: Record) -> str:
        """`92 of 24×32`: how many terms, and the shape of A in each."""
        return f"{record['rank']} of {'×'.join(map(str, record['outer']))}"


def _sides(record: Record, name: str) -> list[int]:
    found = record.get(name)
    if isinstance(found, list) and len(found) == 2 and all(type(x) is int and x > 0 for x in found):
        return found
    raise ValueError(f"has {name} {found!r}, which must be two sides")


KRONECKER = KroneckerKind()
register_kind(KRONECKER)
