from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import randomized_svd, svd

# One shape and rank for most tests, so that they share what is compiled.
SHAPE, RANK, OVERSAMPLE = (60, 40), 6, 8
SPECTRA = {
    "fast": 2.0 ** -np.arange(40),
    "slow": 1 / np.sqrt(np.arange(1, 41)),
    "flat": np.ones(40),
    "step": np.where(np.arange(40) < RANK, 1.0, 0.9),
}
Matrix = Callable[..., np.ndarray]


@partial(jax.jit, static_argnums=2)
def squared_errors(w: jax.Array, keys: jax.Array, iterations: int) -> jax.Array:
    """One for each key."""

    def one(key: jax.Array) -> jax.Array:
        f = randomized_svd(w, RANK, key, oversample=OVERSAMPLE, iterations=iterations)
        return jnp.sum(jnp.square(w - f.dense()))

    return jax.vmap(one)(keys)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("iterations", [0, 1, 2])
@pytest.mark.parametrize("name", SPECTRA)
def test_error_is_within_the_bound(name: str, iterations: int, spectrum_matrix: Matrix) -> None:
    s = SPECTRA[name]
    head, rest = s[:RANK, None], s[RANK:]
    least = np.sum(rest**2)
    extra = np.sum(rest**2 * (rest / head) ** (4 * iterations)) / (OVERSAMPLE - 1)
    w = jnp.asarray(spectrum_matrix(*SHAPE, s))
    errors = np.asarray(squared_errors(w, jax.random.split(jax.random.key(1), 50), iterations))
    assert errors.min() >= least * (1 - 1e-9)
    assert errors.mean() <= least + extra
    # No key may come out worse than fitting nothing.
    assert errors.max() <= np.sum(s**2)


@pytest.mark.usefixtures("double")
def test_iterations_bring_the_error_down_to_the_least(spectrum_matrix: Matrix) -> None:
    s = SPECTRA["slow"]
    w = jnp.asarray(spectrum_matrix(*SHAPE, s))
    keys = jax.random.split(jax.random.key(1), 50)
    none, one, two = (float(squared_errors(w, keys, q).mean()) for q in (0, 1, 2))
    least = np.sum(s[RANK:] ** 2)
    assert none > one > two > least
    assert two < 1.01 * least


def test_small_singular_values_survive_float32(spectrum_matrix: Matrix) -> None:
    """Without QR after each product, `(W Wᵀ)² W` has lost those below a tenth of the largest."""
    s = np.zeros(40)
    s[:12] = np.logspace(0, -5, 12)
    w = spectrum_matrix(*SHAPE, s)
    f = randomized_svd(w, RANK, jax.random.key(0))
    assert f.a.dtype == f.b.dtype == jnp.float32
    error = np.sum((w - np.asarray(f.dense(), np.float64)) ** 2)
    np.testing.assert_allclose(error, np.sum(s[RANK:] ** 2), rtol=1e-3)


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[::-1]])
def test_factors_are_balanced(shape: tuple[int, int], spectrum_matrix: Matrix) -> None:
    f = randomized_svd(spectrum_matrix(*shape, SPECTRA["slow"]), RANK, jax.random.key(0))
    assert (f.a.shape, f.b.shape) == ((shape[0], RANK), (RANK, shape[1]))
    np.testing.assert_allclose(f.a.T @ f.a, f.b @ f.b.T, atol=1e-5)
    np.testing.assert_allclose(np.diag(f.b @ f.b.T), SPECTRA["slow"][:RANK], rtol=0.05)


@pytest.mark.parametrize("rank", [32, 40])
def test_exact_where_the_start_spans_everything(rank: int, rng: np.random.Generator) -> None:
    w = rng.normal(size=SHAPE)
    f = randomized_svd(w, rank, jax.random.key(0), iterations=0)
    np.testing.assert_allclose(f.dense(), svd(w, rank).dense(), atol=1e-3)


def test_matrices_of_a_rank_below(rng: np.random.Generator) -> None:
    zero = randomized_svd(np.zeros(SHAPE), RANK, jax.random.key(0))
    np.testing.assert_array_equal(zero.dense(), np.zeros(SHAPE))
    thin = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 40))
    f = randomized_svd(thin, RANK, jax.random.key(0))
    np.testing.assert_allclose(f.dense(), thin, atol=1e-4)


def test_the_key_decides(rng: np.random.Generator) -> None:
    w = rng.normal(size=SHAPE)
    one, again, raw, other = (
        np.asarray(randomized_svd(w, RANK, key).dense())
        for key in (jax.random.key(3), jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(4))
    )
    np.testing.assert_array_equal(one, again)
    np.testing.assert_allclose(one, raw, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3


def test_half_precision_is_solved_in_float32(spectrum_matrix: Matrix) -> None:
    w = jnp.asarray(spectrum_matrix(*SHAPE, SPECTRA["fast"]), jnp.bfloat16)
    f = randomized_svd(w, RANK, jax.random.key(0))
    assert f.a.dtype == f.b.dtype == jnp.float32
    error = np.sum((np.asarray(w, np.float64) - np.asarray(f.dense())) ** 2)
    least = np.sum(np.linalg.svd(np.asarray(w, np.float64))[1][RANK:] ** 2)
    np.testing.assert_allclose(error, least, rtol=1e-3)


def test_vmap_equals_loop(rng: np.random.Generator) -> None:
    w = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    keys = jax.random.split(jax.random.key(5), 3)

    def solve(w: jax.Array, key: jax.Array) -> jax.Array:
        return randomized_svd(w, RANK, key).dense()

    loop = [np.asarray(solve(*pair)) for pair in zip(w, keys, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(solve))(w, keys), loop, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"rank": 41}, ValueError, "rank must lie between 1 and 40"),
        ({"rank": 2.0}, TypeError, "rank must be a Python integer"),
        ({"oversample": -1}, ValueError, "oversample must be at least 0"),
        ({"iterations": -1}, ValueError, "iterations must be at least 0"),
        ({"iterations": 0.5}, TypeError, "iterations must be a Python integer"),
        ({"w": np.full(SHAPE, np.inf)}, ValueError, "w has NaN or infinite"),
        ({"w": np.ones((2, *SHAPE))}, ValueError, "jax.vmap"),
    ],
)
def test_errors(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"w": np.ones(SHAPE), "rank": RANK, "key": jax.random.key(0)} | changed
    with pytest.raises(error, match=message):
        randomized_svd(**arguments)
