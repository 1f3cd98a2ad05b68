"""A matrix as a chain of small cores, one a digit of its row and column index.

```python
f = tensor_train(w, ((4, 8, 12), (8, 12, 16)), 16)  # a weight 384 × 1536
y = f.apply(x)  # one small product a core instead of x @ w

# Each token of an embedding (vocabulary, 384) as a train of its own, so that tokens can be added:
split = jax.vmap(lambda row: tensor_train(row, ((1, 1, 1), (6, 8, 8)), 4))
tokens = split(embedding[:, None])
some = jax.tree.map(lambda core: core[ids], tokens).dense()[..., 0, :]
```
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from lpaf_jax.linalg.checks import as_floats, check_integer, check_matrix, check_sides
from lpaf_jax.linalg.lapack import thin_svd
from lpaf_jax.linalg.scaling import exponent, from_unit, to_unit
from lpaf_jax.linalg.sharding import on_mesh

Sides = tuple[tuple[int, ...], tuple[int, ...]]


class TensorTrain(NamedTuple):
    """`W ≈` a chain: entry `(i_1 … i_d, j_1 … j_d)` is the product `G_1[i_1 j_1] … G_d[i_d j_d]`.

    Here `G_t[i j] = cores[t − 1][:, i, j, :]` is a matrix (r_{t−1}, r_t), with r_0 = r_d = 1. A
    pytree of Σ_t r_{t−1} m_t n_t r_t numbers in place of Π_t m_t n_t. The first digit of an index
    is the slow one. Two cores are a sum of r_1 Kronecker products.
    """

    cores: tuple[Float[Array, "*stack r m n s"], ...]

    def apply(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """`x @ dense()` without forming the matrix, for m = Π m_t and n = Π n_t.

        Core by core from the right at 2 Σ_t (Π_{u<t} m_u) r_{t−1} m_t n_t r_t (Π_{u>t} n_u) FLOP a
        row of `x` or, where that is cheaper, from the left (n_u for u < t, m_u for u > t). For a
        stack use `jax.vmap`.
        """
        shapes = [core.shape for core in self.cores]
        leftward = _products(shapes[::-1]) <= _products(shapes)
        product = "...qmsp,rmns->...qrnp" if leftward else "...prmq,rmns->...pnsq"
        batch, todo, done = x.shape[:-1], x.shape[-1], 1
        for core in reversed(self.cores) if leftward else self.cores:
            r, m, n, s = core.shape
            todo //= m
            digits = (todo, m, s, done) if leftward else (done, r, m, todo)
            x = jnp.einsum(product, x.reshape(*batch, *digits), core)
            done *= n
        return x.reshape(*batch, done)

    def dense(self) -> Float[Array, "*stack m n"]:
        """The matrix that the chain stands for, in full precision."""
        w = self.cores[0][..., 0, :, :, :]
        for core in self.cores[1:]:
            precision = jax.lax.Precision.HIGHEST
            w = jnp.einsum("...ijr,...rkls->...ikjls", w, core, precision=precision)
            *stack, m1, m2, n1, n2, s = w.shape
            w = w.reshape(*stack, m1 * m2, n1 * n2, s)
        return w[..., 0]

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r_1, …, r_{d−1}), the sizes between neighbouring cores."""
        return tuple(core.shape[-1] for core in self.cores[:-1])

    @property
    def size(self) -> int:
        """How many numbers are stored."""
        return sum(core.size for core in self.cores)


def tensor_train(w: Float[Array, "m n"], shape: Sides, max_rank: int) -> TensorTrain:
    """A nearly best tensor train of ranks at most `max_rank`, by one SVD between two cores.

    With the digits of rows and columns in pairs, W is a tensor (m_1 n_1, …, m_d n_d). From the left
    on, its part not yet split is cut by a truncated SVD into a core and the rest. Each cut is the
    best for what the ones before it left; together they need not be, but

    - `‖W − T‖_F² ≤ Σ_t ε_t²`, where ε_t is the error of the best rank-r_t approximation of the
      t-th unfolding, the matrix (m_1 n_1 … m_t n_t, m_{t+1} n_{t+1} … m_d n_d);
    - so `‖W − T‖_F ≤ √(d − 1)` times the error of the best train of these ranks: for two cores it
      is the best one, the one `nearest_kronecker` finds;
    - a matrix that is such a train is recovered, and so is any where `max_rank` cuts nothing off.

    One vector, say one token of an embedding, is a matrix (1, n) whose row digits are all 1.

    Args:
      w: matrix of shape (m, n); half precision and integers are solved in float32.
      shape: ((m_1, …, m_d), (n_1, …, n_d)) with Π m_t = m and Π n_t = n, static. Fill up with 1
        where one side has fewer digits than the other.
      max_rank: static, at least 1. r_t is the smaller of it and of what the t-th cut allows,
        `min(r_{t−1} m_t n_t, m_{t+1} n_{t+1} … m_d n_d)`, whatever the values in `w`.

    Returns:
      Cores of shape (r_{t−1}, m_t, n_t, r_t). All but the last are orthogonal,
      `Σ_rmn G_rmns G_rmns' = 1 if s = s' else 0`; the last has the norm of the whole.

    Raises:
      ValueError: `w` is not a finite matrix, `shape` does not multiply to its shape, or `max_rank`
        is below 1.

    Not differentiable in reverse mode: the orthogonal cores have no derivative where singular
    values repeat.

    Cost: d − 1 full SVDs, of matrices (p_t, q_t) = (r_{t−1} m_t n_t, m_{t+1} n_{t+1} … m_d n_d):
    O(Σ_t p_t q_t min(p_t, q_t)).
    Source: Oseledets, "Tensor-train decomposition" (2011); the pairs of digits are from Novikov et
    al., "Tensorizing neural networks" (2015), trains of single tokens from Xu et al., "TensorGPT"
    (2023).
    """
    (w,) = as_floats(w)
    check_matrix(w)
    if len(shape) != 2 or any(np.ndim(sides) != 1 or not len(sides) for sides in shape):
        raise ValueError(f"shape must be ((m_1, …, m_d), (n_1, …, n_d)), got {shape}")
    rows, columns = (tuple(sides) for sides in shape)
    if len(rows) != len(columns):
        raise ValueError(f"shape must have as many row as column digits, got {shape}: pad with 1")
    check_sides(rows, columns, w)
    check_integer(max_rank, "max_rank")
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")
    return on_mesh(lambda w: _tensor_train(w, (rows, columns), max_rank), w, out=PartitionSpec())


@partial(jax.jit, static_argnums=(1, 2))
def _tensor_train(w: Array, shape: Sides, max_rank: int) -> TensorTrain:
    rows, columns = shape
    pairs = [axis for t in range(len(rows)) for axis in (t, len(rows) + t)]
    unit = exponent(w)
    rest, rank = to_unit(w, unit).reshape(rows + columns).transpose(pairs), 1
    cores = []
    for m, n in zip(rows[:-1], columns[:-1], strict=True):
        u, s, vt = thin_svd(rest.reshape(rank * m * n, -1))
        kept = min(max_rank, s.size)
        cores.append(u[:, :kept].reshape(rank, m, n, kept))
        rest, rank = s[:kept, None] * vt[:kept], kept
    cores.append(from_unit(rest, unit).reshape(rank, rows[-1], columns[-1], 1))
    return TensorTrain(tuple(cores))


def _products(shapes: list[tuple[int, ...]]) -> int:
    """Multiplications a row of `apply`, for cores of these shapes in this order."""
    total, done, todo = 0, 1, math.prod(m for _, m, _, _ in shapes)
    for r, m, n, s in shapes:
        todo //= m
        total += done * r * m * n * s * todo
        done *= n
    return total
