"""`regressed` against least squares in float64, rows of the penalty stacked below the data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import metric_svd, regressed

Array = np.ndarray


def streams(rng: np.random.Generator, strengths: Array, noise: float = 0.3) -> tuple[Array, Array]:
    """x and x̂, (tokens, m): correlated channels, and the same with errors."""
    m = len(strengths)
    mixed = rng.standard_normal((40 * m, m)) @ (np.eye(m) + 0.3 * rng.standard_normal((m, m)))
    x = mixed * strengths
    return x, x + noise * strengths * rng.standard_normal(x.shape)


def moments(x: Array, given: Array) -> tuple[Array, Array]:
    return given.T @ given / len(x), given.T @ x / len(x)


def least_squares(w: Array, x: Array, given: Array, ridge: float) -> Array:
    strengths = np.sqrt(ridge * np.mean(np.square(given), axis=0) * len(x))
    rows = np.concatenate([given, np.diag(strengths)])
    aim = np.concatenate([x @ w, strengths[:, None] * w])
    return np.linalg.lstsq(rows, aim, rcond=None)[0]


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_least_squares_with_a_penalty(rng: np.random.Generator, ridge: float, scale: float) -> None:
    x, given = streams(rng, scale * np.logspace(0, 1, 12))
    w = rng.standard_normal((12, 7))
    found = regressed(w, *moments(x, given), ridge)
    np.testing.assert_allclose(found, least_squares(w, x, given, ridge), atol=2e-5)


def test_of_its_own_inputs_a_matrix_stays_as_it_is(rng: np.random.Generator) -> None:
    x, _ = streams(rng, np.ones(12))
    w = rng.standard_normal((12, 7))
    np.testing.assert_allclose(regressed(w, *moments(x, x)), w, atol=1e-5)


def test_massive_channels_leave_what_is_said_of_the_others(rng: np.random.Generator) -> None:
    strengths = np.ones(12)
    strengths[3] = 1e3
    x, given = streams(rng, strengths)
    w = rng.standard_normal((12, 7)) / strengths[:, None]
    found = np.asarray(regressed(w, *moments(x, given), 0.1))
    wanted = least_squares(w, x, given, 0.1)
    np.testing.assert_allclose(found * strengths[:, None], wanted * strengths[:, None], atol=1e-4)


def test_a_channel_that_is_never_given_keeps_its_row(rng: np.random.Generator) -> None:
    x, given = streams(rng, np.ones(12))
    given[:, 5] = 0
    w = rng.standard_normal((12, 7))
    found = np.asarray(regressed(w, *moments(x, given)))
    np.testing.assert_allclose(found[5], w[5], rtol=1e-6)
    alive = np.arange(12) != 5
    # What went with the row that is lost makes up for it.
    mended, left = (x @ w - given[:, alive] @ rows[alive] for rows in (found, w))
    assert np.square(mended).mean() < np.square(left).mean()


def test_its_factors_are_the_best_for_the_outputs_that_are_wanted(rng: np.random.Generator) -> None:
    x, given = streams(rng, np.logspace(0, 1, 12))
    w = rng.standard_normal((12, 7))
    second, cross = moments(x, given)

    def error(target: Any) -> float:
        product = np.asarray(metric_svd(target, 3, left=second).dense(), np.float64)
        return float(np.square(x @ w - given @ product).mean())

    best = least_squares(w, x, given, 1e-9)
    u, s, vt = np.linalg.svd(given @ best, full_matrices=False)
    floor = np.square(x @ w - (u[:, :3] * s[:3]) @ vt[:3]).mean()
    assert error(regressed(w, second, cross, 1e-6)) == pytest.approx(floor, rel=1e-4)
    assert error(w) > 1.01 * floor


def test_works_under_jit_and_vmap(rng: np.random.Generator) -> None:
    pairs = [streams(rng, np.ones(6)) for _ in range(3)]
    second, cross = map(jnp.asarray, zip(*(moments(*pair) for pair in pairs), strict=True))
    w = jnp.asarray(rng.standard_normal((3, 6, 4)))
    found = jax.jit(jax.vmap(regressed))(w, second, cross)
    for i in range(3):
        np.testing.assert_allclose(found[i], regressed(w[i], second[i], cross[i]), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"second": np.ones(4)}, r"must both be \(4, 4\)"),
        ({"cross": np.ones((4, 3))}, r"must both be \(4, 4\)"),
        ({"cross": np.full((4, 4), np.nan)}, "cross has NaN"),
        ({"second": np.triu(np.ones((4, 4)))}, "second is not symmetric"),
        ({"ridge": 0.0}, "ridge must lie in"),
    ],
)
def test_errors(changed: dict[str, Any], message: str) -> None:
    chosen = {"w": np.ones((4, 2)), "second": np.eye(4), "cross": np.eye(4)} | changed
    with pytest.raises(ValueError, match=message):
        regressed(**chosen)
