from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from lpaf_jax.linalg import (
    effective_rank,
    empty_columns,
    empty_rows,
    energy_rank,
    singular_values,
    stable_rank,
)

Matrix = Callable[..., np.ndarray]


def test_singular_values_are_those_prescribed(spectrum_matrix: Matrix) -> None:
    s = np.array([5.0, 3.0, 1.0, 0.25])
    np.testing.assert_allclose(singular_values(spectrum_matrix(9, 6, s))[:4], s, rtol=1e-5)
    stack = np.stack([spectrum_matrix(5, 4, s), spectrum_matrix(5, 4, 2 * s)])
    np.testing.assert_allclose(singular_values(stack), np.stack([s, 2 * s]), rtol=1e-5)


def test_effective_rank_is_the_exponential_of_the_entropy(rng: np.random.Generator) -> None:
    s = rng.exponential(size=(3, 20)) ** 3
    np.testing.assert_allclose(effective_rank(s), np.exp(entropy(s, axis=1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("s", "effective", "stable"),
    [([4, 4, 4, 0], 3, 3), ([7, 0, 0], 1, 1), ([0, 0], 0, 0), ([1e-30, 1e-30], 2, 2)],
)
def test_equal_singular_values_count_as_one_each(
    s: list[float], effective: float, stable: float
) -> None:
    np.testing.assert_allclose(effective_rank(np.array(s)), effective, rtol=1e-5)
    np.testing.assert_allclose(stable_rank(np.array(s)), stable, rtol=1e-5)


def test_stable_rank_is_the_ratio_of_norms(rng: np.random.Generator) -> None:
    w = rng.normal(size=(8, 5))
    expected = np.linalg.norm(w) ** 2 / np.linalg.norm(w, 2) ** 2
    np.testing.assert_allclose(stable_rank(singular_values(w)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("share", "dimensions"), [(0.5, 1), (0.65, 2), (0.91, 3), (0.985, 4), (1.0, 4)]
)
def test_energy_rank(share: float, dimensions: int) -> None:
    s = np.array([0.2, 0.8, 0.5, 0.3])[[1, 2, 3, 0]]  # squares 0.64, 0.25, 0.09, 0.04
    assert energy_rank(s, share) == dimensions
    assert energy_rank(np.append(s[::-1], 0), share) == dimensions


def test_energy_rank_of_nothing_and_of_a_bad_share() -> None:
    assert energy_rank(np.zeros(3)) == 0
    with pytest.raises(ValueError, match="share"):
        energy_rank(np.ones(3), 90)


def test_empty_rows_and_columns() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = mask[1, 3] = mask[3, 2] = True
    assert empty_rows(mask) == 0.5
    np.testing.assert_allclose(empty_columns(mask), 0.6, rtol=1e-6)
    np.testing.assert_allclose(empty_rows(-0.1 * mask), 0.5, rtol=1e-6)
    np.testing.assert_allclose(empty_columns(jnp.stack([mask, ~mask])), [0.6, 0], rtol=1e-6)
