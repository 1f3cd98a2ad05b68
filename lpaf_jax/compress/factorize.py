"""Factorize every compressible matrix of a model."""

from collections import defaultdict
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from lpaf_jax.compress.spread import solve_each
from lpaf_jax.errors import LpafError
from lpaf_jax.importance import importance
from lpaf_jax.linalg import LowRank, svd, weighted_als, weighted_svd
from lpaf_jax.models.functional import Params

# solver(weight, importance, rank) -> balanced factors, AᵀA = BBᵀ: an adaptive optimiser then moves
# both alike
Solver = Callable[[Array, Array, int], LowRank]

SOLVERS: dict[str, Solver] = {
    "row": lambda w, i, rank: weighted_svd(w, i, rank, sharing="row"),
    "elementwise": lambda w, i, rank: weighted_als(w, i, rank)[0],
    "none": lambda w, i, rank: svd(w, rank),
}


def factorize(
    weights: Params,
    scores: Params,
    masks: Params,
    rank: int,
    *,
    solver: str,
    kind: str,
    floor: float,
) -> dict[str, LowRank]:
    """Rank-`rank` factors of every matrix in `weights`.

    Matrices of one shape are solved by one compiled call, spread over the devices of all processes;
    each process gives all matrices and gets all factors.

    Args:
        weights: W by path, (m, n) each, pruned entries 0. scores, masks: S and M by path.
        rank: k, the same for all.
        solver: one of `SOLVERS`.
        kind, floor: see `lpaf_jax.importance.importance`.

    Raises:
        LpafError: the weights, the scores or the factors of a matrix are not finite.
    """

    def solve(matrices: tuple[Array, Array, Array]) -> LowRank:
        w, s, m = matrices
        return SOLVERS[solver](w, importance(kind, w, s, m, floor), rank)

    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for path, w in weights.items():
        by_shape[w.shape].append(path)
    factors: dict[str, LowRank] = {}
    for paths in by_shape.values():
        problems = [tuple(tree[p] for tree in (weights, scores, masks)) for p in paths]
        factors |= dict(zip(paths, solve_each(solve, problems), strict=True))
    for path, (a, b) in factors.items():
        if not all(jnp.isfinite(x).all() for x in (weights[path], scores[path], a, b)):
            raise LpafError(
                f"{path}: its weights, scores or factors hold NaN or infinity; if the weights do "
                "not, choose another solver or a larger floor"
            )
    return factors
