"""From a matrix and what weighs its error to factors: the protocol, and the registry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.core.errors import SettingError
from lpaf_jax.core.registry import Registry
from lpaf_jax.importance import IMPORTANCES, Importance, Weighting
from lpaf_jax.importance.base import Part
from lpaf_jax.linalg import LowRank, balance


class Form(NamedTuple):
    """What a solver makes of a matrix, for people.

    Attributes:
        text: of m × n numbers are replaced by ...
        size: what its rank is called.
        method: what this is called.
        tag: the same in one word, for hubs.
    """

    text: str
    size: str
    method: str
    tag: str


PRODUCT = Form("products of an m × k and a k × n matrix", "k", "low-rank factorization", "low-rank")


class Solution(NamedTuple):
    """What becomes of a matrix.

    Attributes:
        factors: A and B, balanced (AᵀA = BBᵀ): an adaptive optimiser then moves both alike; the
            terms of a sum of Kronecker products; or what else a kind of factors names as its
            `solution`.
        bias: what is added to the bias of the layer, (n,); None where nothing is.
    """

    factors: Any
    bias: Array | None = None


@dataclass(frozen=True)
class Solver:
    """A way to solve the weighted factorization of one matrix.

    Attributes:
        name: by which it is registered.
        summary: what it does, on one line.
        uses: the parts of a `Weighting` that it looks at.
        solve: `(W, weighting, rank, ridge) -> Solution`, jittable.
        needs: those of `uses` that it cannot do without.
        nested: `(W, weighting, k) -> factors` of which the first j columns and rows are the
            solution of rank j, for every j up to k; None where a rank says nothing of another.
            With it all ranks are solved by one compiled program.
        ridge: whether it has a term `λ (‖A‖² + ‖B‖²)`.
        moves_bias: whether a solution has a bias, so that every layer must have one.
        ranked: `(m, n)` of a matrix to that of the one whose rank it chooses, of as many numbers:
            its solutions of rank k have k times the sum of the sides.
        form: what its solutions are, and what one of rank k is, for people.
    """

    name: str
    summary: str
    uses: frozenset[Part]
    solve: Callable[[Array, Weighting, int, float], Solution]
    needs: frozenset[Part] = frozenset()
    nested: Callable[[Array, Weighting, int], LowRank] | None = None
    ridge: bool = False
    moves_bias: bool = False
    ranked: Callable[[tuple[int, int]], tuple[int, int]] = lambda shape: shape
    form: Form = PRODUCT


SOLVERS: Registry[Solver] = Registry("solver", Solver)
ENTRIES: frozenset[Part] = frozenset({"entries"})


def register_solver(solver: Solver) -> Solver:
    """Let recipes use a solver by its name."""
    return SOLVERS.register(solver)


def solve_cut(solver: Solver, w: Array, weighting: Weighting, rank: Array, most: int) -> Solution:
    """The solution of rank k of a solver that has `nested`, jittable in k.

    Returns:
        factors of rank `most`, balanced, of which all beyond the first k columns and rows are 0.
    """
    assert solver.nested is not None
    a, b = solver.nested(w, weighting, most)
    kept = jnp.arange(most) < rank
    return Solution(balance(LowRank(jnp.where(kept, a, 0), jnp.where(kept[:, None], b, 0))))


def first(solution: Solution, rank: int) -> Solution:
    """The first k columns and rows of what `solve_cut` gives."""
    # On the host: on the device every rank would be compiled.
    assert isinstance(solution.factors, LowRank)
    a, b = map(np.asarray, solution.factors)
    return Solution(LowRank(jnp.asarray(a[:, :rank]), jnp.asarray(b[:rank])), solution.bias)


def solve_one(
    solver: Solver, w: Array, weighting: Weighting, rank: int, ridge: float = 0.0
) -> Solution:
    """The solution for one matrix, by a program compiled once for all ranks if it can be."""
    if solver.nested is None:
        return solver.solve(w, weighting, rank, ridge)
    return first(_cut(solver, w, weighting, jnp.int32(rank), min(w.shape)), rank)


@partial(jax.jit, static_argnums=(0, 4))
def _cut(solver: Solver, w: Array, weighting: Weighting, rank: Array, most: int) -> Solution:
    return solve_cut(solver, w, weighting, rank, most)


def check_pair(importance: Importance, solver: Solver, ridge: float = 0.0) -> None:
    """Refuse an importance and a solver that have nothing to say to each other.

    Raises:
        SettingError: the solver looks at something else than the importance gives, or has no
            ridge and is given one.
    """
    if ridge and not solver.ridge:
        with_ridge = [name for name, each in SOLVERS.items() if each.ridge]
        raise SettingError(
            ("ridge",),
            f"is {ridge}, but solver {solver.name} has no ridge term: leave it out, or use "
            f"--solver {' or '.join(with_ridge)}",
        )
    if not _fits(importance, solver):
        fitting = [name for name, each in SOLVERS.items() if _fits(importance, each)]
        others = [name for name, each in IMPORTANCES.items() if _fits(each, solver)]
        raise SettingError(
            ("importance", "solver"),
            f"do not fit together: {importance.name!r} needs --solver {' or '.join(fitting)}, and "
            f"{solver.name!r} needs --importance {' or '.join(others)}",
        )


def _fits(importance: Importance, solver: Solver) -> bool:
    # Plain SVD looks at nothing; a metric may be of one side alone, but of no side it is plain SVD.
    looks = bool(importance.gives) == bool(solver.uses)
    return looks and solver.needs <= importance.gives <= solver.uses


def check_biases(solver: str, biases: Mapping[str, bool]) -> None:
    """Refuse a solver that moves biases for a model that has none.

    Args:
        solver: one of `SOLVERS`.
        biases: whether a layer has one, by path.

    Raises:
        SettingError: names the first layer without.
    """
    without = [path for path, has in biases.items() if not has]
    if SOLVERS[solver].moves_bias and without:
        raise SettingError(
            ("solver",),
            f"{solver!r} changes the bias of every layer, but {without[0]} has none: use "
            "--importance activations --solver metric, the same method without the bias",
        )
