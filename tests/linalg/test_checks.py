from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import LowRank, Status, svd, weighted_als, weighted_svd

W, ONES = np.arange(12.0).reshape(4, 3), np.ones((4, 3))
SOLVERS = [weighted_svd, weighted_als]


def with_entry(x: np.ndarray, value: float) -> np.ndarray:
    return np.where(np.arange(12).reshape(4, 3) == 5, value, x)


@pytest.mark.parametrize(
    "solve", [lambda w: svd(w, 2), *(lambda w, s=s: s(w, ONES, 2) for s in SOLVERS)]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite(solve: Callable[..., Any], value: float) -> None:
    with pytest.raises(ValueError, match="w has NaN or infinite"):
        solve(with_entry(W, value))


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (with_entry(ONES, np.nan), "importance has NaN"),
        (with_entry(ONES, np.inf), "importance has NaN or infinite"),
        (with_entry(ONES, -1e-9), "negative"),
        (0 * ONES, "zero everywhere"),
        (ONES.T, r"shape \(3, 4\) but w has \(4, 3\)"),
        (ONES[:, :1], "must be equal"),
    ],
)
def test_importance(solve: Callable[..., Any], importance: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(W, importance, 2)


@pytest.mark.parametrize(
    "solve", [lambda r: svd(W, r), *(lambda r, s=s: s(W, ONES, r) for s in SOLVERS)]
)
def test_rank(solve: Callable[..., Any]) -> None:
    for rank in (0, -1, 4):
        with pytest.raises(ValueError, match="rank must lie between 1 and 3"):
            solve(rank)
    for wrong in (1.0, True, "2", jnp.asarray(2)):
        with pytest.raises(TypeError, match="rank must be a Python integer"):
            solve(wrong)


@pytest.mark.parametrize("w", [np.ones(3), np.ones((2, 3, 4)), np.ones((0, 3))])
def test_what_is_no_matrix(w: np.ndarray) -> None:
    with pytest.raises(ValueError, match="non-empty matrix"):
        svd(w, 1)


def test_complex_numbers() -> None:
    with pytest.raises(TypeError, match="complex"):
        svd(W * 1j, 1)


@pytest.mark.parametrize("name", ["ridge", "tol", "max_sweeps"])
@pytest.mark.parametrize("value", [-1, np.nan, np.inf, np.ones(2)])
def test_settings_of_als(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        weighted_als(W, ONES, 2, **{name: value})


def test_unknown_sharing() -> None:
    with pytest.raises(ValueError, match="sharing must be one of"):
        weighted_svd(W, ONES, 2, "rows")  # type: ignore[arg-type]


def test_start_of_als() -> None:
    with pytest.raises(ValueError, match=r"rank 2 of a matrix \(4, 3\) needs"):
        weighted_als(W, ONES, 2, init=svd(W, 3))
    with pytest.raises(ValueError, match=r"init\.a has NaN"):
        weighted_als(W, ONES, 2, init=LowRank(np.full((4, 2), np.nan), np.ones((2, 3))))


def test_values_are_not_looked_at_under_tracing() -> None:
    bad = jnp.asarray(with_entry(W, np.nan), jnp.float32)
    ones = jnp.ones((4, 3))
    _, info = jax.jit(lambda w: weighted_als(w, ones, 2))(bad)
    assert info.status == Status.FAILED
    with pytest.raises(ValueError, match="must be equal"):
        jax.jit(lambda w: weighted_svd(w, ones.T, 2))(bad)
