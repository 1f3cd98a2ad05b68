"""Kronecker products that keep every second row or column, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.importance import Weighting
from lpaf_jax.solvers import SOLVERS


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (6, 6), (5, 8), (8, 5)])
def test_every_second_row_or_column_is_kept(shape: tuple[int, int]) -> None:
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    solver = SOLVERS["kronecker-halves"]
    expected = w.copy()
    if shape[0] % 2 == 0 and (shape[0] <= shape[1] or shape[1] % 2):
        expected[1::2] = 0
    else:
        expected[:, 1::2] = 0
    found = solver.solve(jnp.asarray(w), Weighting(), 1, 0.0).factors
    np.testing.assert_array_equal(found.dense(), expected)
    assert found.size == w.size // 2 + 2
    both = solver.solve(jnp.asarray(w), Weighting(), 2, 0.0).factors
    np.testing.assert_array_equal(both.dense(), w)
    # The nearest one is nearer: this is a start, and no approximation.
    nearest = SOLVERS["kronecker-pairs"].solve(jnp.asarray(w), Weighting(), 1, 0.0).factors
    assert np.linalg.norm(w - nearest.dense()) < np.linalg.norm(w - expected)
