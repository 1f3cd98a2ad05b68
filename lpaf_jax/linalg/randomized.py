"""Truncated SVD by random projection, for ranks far below the size of the matrix.

```python
f = randomized_svd(w, 64, jax.random.key(0))  # 6 products of w with 72 vectors, no full SVD
```
"""

from functools import partial

import jax
from jaxtyping import Array, Float, Key, UInt32

from lpaf_jax.linalg.arithmetic import matmul
from lpaf_jax.linalg.checks import as_floats, check_count, check_matrix, check_rank
from lpaf_jax.linalg.factors import LowRank, sharded_like
from lpaf_jax.linalg.lapack import qr
from lpaf_jax.linalg.scaling import at_unit_scale
from lpaf_jax.linalg.sharding import on_mesh
from lpaf_jax.linalg.svd import truncate

OVERSAMPLE = 8


def randomized_svd(
    w: Float[Array, "m n"],
    rank: int,
    key: Key[Array, ""] | UInt32[Array, "2"],
    *,
    oversample: int = OVERSAMPLE,
    iterations: int = 2,
) -> LowRank:
    """A nearly best rank-k approximation of W by subspace iteration from a random start.

    With p extra vectors (`oversample`) and q iterations: Q is an orthonormal basis of
    `(W Wᵀ)^q W Ω`, where Ω is n × (k + p) and standard normal, made anew by QR after every product
    so that small singular values are not lost to rounding; the result is Q times the best rank-k
    approximation of `Qᵀ W`. In expectation over Ω, for p >= 2 and singular values σ of W,

        E ‖W − AB‖²_F  ≤  Σ_{j>k} σ_j² + 1/(p − 1) · Σ_{i≤k} Σ_{j>k} σ_j² (σ_j / σ_i)^{4q}.

    The first sum is the least error of any rank k. Where σ falls fast the second vanishes; where
    it is flat the bound says little, but then so does any rank-k approximation: the error lies
    between the least and ‖W‖²_F. With k + p >= min(m, n) the result is exact.

    Args:
      w: matrix of shape (m, n); half precision and integers are solved in float32.
      rank: k, static, between 1 and min(m, n).
      key: of `jax.random`; the same key gives the same factors.
      oversample: p, static, at least 0.
      iterations: q, static, at least 0.

    Returns:
      Balanced factors.

    Raises:
      ValueError: `w` is not a finite matrix, or a number is out of range.

    Works under `jit` and `vmap` (with a key a matrix). For derivatives use `svd`.

    Cost: 4 (q + 1) m n (k + p) FLOP, and O((q + 1) (m + n) (k + p)²) for the QR factorizations and
    a small SVD; the full SVD of `svd` is O(m n min(m, n)).
    Source: Halko, Martinsson & Tropp, "Finding structure with randomness: probabilistic algorithms
    for constructing approximate matrix decompositions" (2011), algorithms 4.4 and 5.1. The bound is
    their theorem 10.5 (q = 0) carried through the iterations, which weigh the error of direction i
    by `(σ_j / σ_i)^{2q}`, and through the truncation to rank k, which costs nothing in this norm.
    """
    (w,) = as_floats(w)
    check_matrix(w)
    check_rank(rank, w.shape)
    check_count(oversample=oversample, iterations=iterations)
    vectors = min(rank + oversample, *w.shape)
    return on_mesh(
        lambda w, key: _randomized_svd(w, key, rank, vectors, iterations),
        w,
        key,
        out=sharded_like(w, w),
    )


@partial(jax.jit, static_argnums=(2, 3, 4))
def _randomized_svd(w: Array, key: Array, rank: int, vectors: int, iterations: int) -> LowRank:
    def solve(w: Array, start: Array) -> LowRank:
        q, _ = qr(matmul(w, start))
        for _ in range(iterations):
            rows, _ = qr(matmul(w.T, q))
            q, _ = qr(matmul(w, rows))
        f = truncate(matmul(q.T, w), rank)
        return LowRank(matmul(q, f.a), f.b)

    start = jax.random.normal(key, (w.shape[1], vectors), w.dtype)
    return at_unit_scale(solve, (w,), settings=(start,))
