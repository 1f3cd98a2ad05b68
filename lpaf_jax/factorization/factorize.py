"""Factorize the compressible matrices of a model that is in memory."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.machine import one_blas_thread
from lpaf_jax.core.progress import Told, untold
from lpaf_jax.factorization.measured import measured_spectra
from lpaf_jax.factorization.spread import solve_each
from lpaf_jax.importance import IMPORTANCES, TWO_SIDED, Subject, Weighting, measure
from lpaf_jax.ranks import RANK_RULES, choose_ranks, loss_spectrum
from lpaf_jax.solvers import SOLVERS, Solution, check_pair, first, solve_cut


@one_blas_thread()
def factorize(
    subject: Subject,
    *,
    importance: str,
    solver: str,
    ranks: str = "uniform",
    params: float | None = None,
    rank: int | None = None,
    floor: float = 0.0,
    ridge: float = 0.0,
    multiple_of: int = 1,
    least: float = 0.0,
    to_full: float = 0.0,
    told: Told = untold,
) -> dict[str, Solution]:
    """Factors of the matrices in `subject.weights`, by kernel path, but for those that stay dense.

    Matrices of one shape (and one rank, unless the solver has all ranks at once) are solved by one
    compiled call, spread over the devices of all
    processes; each process gives all matrices and gets all factors.

    Args:
        subject: the model and its data.
        importance: one of `IMPORTANCES`. solver: one of `SOLVERS`. ranks: one of `RANK_RULES`.
        params: share of the numbers to be kept; or `rank`, the same for all.
        floor: see `lpaf_jax.importance.measure`.
        ridge: λ of the exact element-wise objective.
        multiple_of: step of ranks that differ.
        least: share of its own numbers that each matrix keeps where ranks go by the loss.
        to_full: how far ranks go from those that the rule gives to the full ones, min(m, n).
        told: how many matrices are through with each part of the work. The importance takes its
            time before, which `subject.batches` can tell of.

    Raises:
        LpafError: a choice is unknown or does not go with another, or the weights, the importance
            or the factors of a matrix are not finite.
    """
    chosen, rule = IMPORTANCES[importance], RANK_RULES[ranks]
    check_pair(chosen, SOLVERS[solver], ridge)
    weightings = measure(chosen, subject, floor)
    shapes = {path: (w.shape[0], w.shape[1]) for path, w in subject.weights.items()}
    spectra = {}
    if rule.needs_spectra:
        two_sided = weightings if chosen is TWO_SIDED else measure(TWO_SIDED, subject)
        _check_finite(subject.weights, two_sided)
        told("spectra taken", 0, len(shapes))
        for done, (path, w) in enumerate(subject.weights.items(), 1):
            spectra[path] = loss_spectrum(w, two_sided[path])
            told("spectra taken", done, len(shapes))
    _check_finite(subject.weights, weightings)

    # Rules know matrices by the paths of their layers.
    layers = {path.removesuffix(".kernel"): path for path in shapes}

    def solved(spectra: Mapping[str, np.ndarray]) -> dict[str, Solution]:
        given = choose_ranks(
            ranks,
            {layer: SOLVERS[solver].ranked(shapes[path]) for layer, path in layers.items()},
            params=params,
            rank=rank,
            spectra={layer: spectra[path] for layer, path in layers.items() if path in spectra},
            multiple_of=multiple_of,
            least=least,
        )
        cut = {layers[layer]: k for layer, k in given.items() if k is not None}
        for path, k in cut.items():
            cut[path] = k + round(to_full * (min(shapes[path]) - k))
        return solve_all(subject.weights, weightings, cut, solver=solver, ridge=ridge, told=told)

    found = solved(spectra)
    if rule.measured:
        found = solved(measured_spectra(subject, spectra, found, told))
    for path, solution in found.items():
        if not _finite(solution):
            raise LpafError(
                f"{path}: the factors contain NaN or infinity; choose another solver or a larger "
                "floor"
            )
    return found


def solve_all(
    weights: Mapping[str, Array],
    weightings: Mapping[str, Weighting],
    ranks: Mapping[str, int],
    *,
    solver: str,
    ridge: float = 0.0,
    told: Told = untold,
) -> dict[str, Solution]:
    """The solutions of all matrices that have a rank, by path; `told` how many there are yet."""
    chosen = SOLVERS[solver]
    groups: dict[Any, list[str]] = defaultdict(list)
    for path, rank in ranks.items():
        parts = tuple(None if x is None else x.shape for x in weightings[path])
        groups[weights[path].shape, rank if chosen.nested is None else None, parts].append(path)
    found: dict[str, Solution] = {}
    told("matrices factorized", 0, len(ranks))
    for paths in groups.values():
        most = max(ranks[path] for path in paths)
        problems = [(weights[p], weightings[p], jnp.int32(ranks[p])) for p in paths]

        def solve(problem: Any, most: int = most) -> Solution:
            w, weighting, rank = problem
            if chosen.nested is None:
                return chosen.solve(w, weighting, most, ridge)
            return solve_cut(chosen, w, weighting, rank, most)

        solved = dict(zip(paths, solve_each(solve, problems), strict=True))
        if chosen.nested is not None:
            solved = {path: first(solution, ranks[path]) for path, solution in solved.items()}
        found |= jax.block_until_ready(solved)
        told("matrices factorized", len(found), len(ranks))
    return {path: found[path] for path in ranks}


def _check_finite(weights: Mapping[str, Array], weightings: Mapping[str, Weighting]) -> None:
    for path, w in weights.items():
        if not _finite(w):
            raise LpafError(f"{path}: the weights contain NaN or infinity")
        if not _finite(weightings[path]):
            raise LpafError(
                f"{path}: the scores, gradients or inputs contain NaN or infinity: the model "
                "overflows, or training has diverged"
            )


def _finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))
