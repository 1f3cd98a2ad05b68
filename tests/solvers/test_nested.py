"""Solvers that have all ranks at once, and what is made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.importance import Weighting
from lpaf_jax.solvers import SOLVERS, first, solve_cut, solve_one

NESTED = [name for name, solver in SOLVERS.items() if solver.nested is not None]


@pytest.mark.parametrize("name", NESTED)
def test_one_program_gives_the_solution_of_every_rank(name: str) -> None:
    random = np.random.default_rng(0)
    solver, w = SOLVERS[name], jnp.asarray(random.normal(size=(10, 14)), jnp.float32)
    x, g = random.normal(size=(40, 10)), random.normal(size=(40, 14))
    weighting = Weighting(left=jnp.asarray(x.T @ x), right=jnp.asarray(g.T @ g))
    traced = []

    @jax.jit
    def cut(rank: jax.Array) -> object:
        traced.append(1)
        return solve_cut(solver, w, weighting, rank, 8)

    for rank in (1, 5, 8):
        expected = solver.solve(w, weighting, rank, 0.0).factors
        for found in (first(cut(jnp.int32(rank)), rank), solve_one(solver, w, weighting, rank)):
            a, b = found.factors
            assert a.shape == (10, rank)
            np.testing.assert_allclose(a @ b, expected.dense(), atol=1e-4)
            np.testing.assert_allclose(a.T @ a, b @ b.T, atol=1e-3)
    assert len(traced) == 1


def test_there_are_some() -> None:
    assert "metric" in NESTED
