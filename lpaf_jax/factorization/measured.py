"""Spectra in units of what cutting one matrix alone does to the model's answers."""

from collections.abc import Mapping
from statistics import median
from typing import Any

import jax
import numpy as np
from jax import Array

from lpaf_jax.importance import Subject
from lpaf_jax.models.functional import Batch, Params, as_function, parameters
from lpaf_jax.solvers import Solution

_BATCHES = 10
# No matrix counts for less than this share of the median: below it a rise is rounding.
_LEAST = 1e-3


def measured_spectra(
    subject: Subject, spectra: Mapping[str, np.ndarray], cut: Mapping[str, Solution]
) -> dict[str, np.ndarray]:
    """`c_p s_p`, so that `½ c_p² Σ_{j>k} s_pj²` is the divergence seen when matrix p is cut to k.

    A spectrum in units of the loss takes the model to be quadratic in each output and the inputs
    to have nothing to do with the gradients. Both are off by a factor that differs from matrix to
    matrix, and here it is measured where it matters, at the ranks of a first allocation.

    Args:
        subject: with `divergence`; of its data some ten batches are read.
        spectra: singular values by kernel path, in units of the loss.
        cut: the solution of each matrix alone. Matrices that are not among them, as they stay
            dense, take the median factor.

    Cost: a forward pass over those batches for each matrix.
    """
    model, divergence = subject.model, subject.divergence
    assert divergence is not None
    forward, params = as_function(model), parameters(model)

    @jax.jit
    def answers(params: Params, batch: Batch) -> Any:
        return forward(params, {}, batch)

    @jax.jit
    def moved(params: Params, before: Any, batch: Batch) -> Array:
        return divergence(before, forward(params, {}, batch), batch)

    batches = [dict(batch) for batch in subject.batches(_BATCHES)]
    before = [answers(params, batch) for batch in batches]
    squared = {}
    for path, solution in cut.items():
        changed = params | _cut(params, path, solution)
        seen = np.mean(
            [
                float(moved(changed, given, batch))
                for given, batch in zip(before, batches, strict=True)
            ]
        )
        expected = 0.5 * float(np.sum(np.square(spectra[path][solution.factors.rank :])))
        if expected > 0:
            squared[path] = float(seen) / expected
    usual = median(squared.values()) if squared else 1.0
    if not usual > 0:
        return dict(spectra)
    factors = {path: max(squared.get(path, usual), _LEAST * usual) for path in spectra}
    return {path: np.sqrt(factors[path]) * s for path, s in spectra.items()}


def _cut(params: Params, path: str, solution: Solution) -> Params:
    found = {path: solution.factors.dense()}
    if solution.bias is not None:
        place = path.removesuffix("kernel") + "bias"
        found[place] = params[place] + solution.bias
    return found
