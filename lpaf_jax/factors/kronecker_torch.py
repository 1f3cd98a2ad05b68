"""A sum of Kronecker products in PyTorch."""

from typing import Any

from torch import Tensor, einsum, nn, zeros


class kronecker_Layer(nn.Module):
    """`y = x (Σ_t A_t ⊗ B_t) + c`, A of (r, m1, n1) and B of (r, m2, n2).

    One after the other where that takes fewer multiplications for as many tokens as there are;
    else their sum is built, and applied.
    """

    def __init__(self, bias: Any, record: dict[str, Any]):
        super().__init__()
        self.outer = nn.Parameter(zeros(record["rank"], *record["outer"]))
        self.inner = nn.Parameter(zeros(record["rank"], *record["inner"]))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        (r, m1, n1), (_, m2, n2) = self.outer.shape, self.inner.shape
        rows = x.reshape(-1, m1 * m2)
        inner_first, outer_first = r * m1 * n2 * (m2 + n1), r * m2 * n1 * (m1 + n2)
        tokens, size = rows.shape[0], m1 * m2 * n1 * n2
        more = min(inner_first, outer_first) - size
        # In a program for any number of tokens that is no int; it is taken to be large.
        if more > 0 and (not isinstance(tokens, int) or tokens * more > r * size):
            whole = einsum("tij,tkl->ikjl", self.outer, self.inner)
            y = rows @ whole.reshape(m1 * m2, n1 * n2)
        elif inner_first <= outer_first:
            half = einsum("bik,tkl->bitl", rows.reshape(-1, m1, m2), self.inner)
            y = einsum("bitl,tij->bjl", half, self.outer)
        else:
            half = einsum("bik,tij->bktj", rows.reshape(-1, m1, m2), self.outer)
            y = einsum("bktj,tkl->bjl", half, self.inner)
        y = y.reshape(*x.shape[:-1], n1 * n2)
        return y if self.bias is None else y + self.bias


def kronecker(layer: Any, record: dict[str, Any]) -> nn.Module:
    """A linear layer whose matrix is the sum of `record["rank"]` Kronecker products."""
    return kronecker_Layer(layer.bias, record)
