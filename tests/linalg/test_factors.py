import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import LowRank, balance, weighted_error


@pytest.fixture
def factors(rng: np.random.Generator) -> LowRank:
    scales = np.array([100.0, 1.0, 0.01])
    a, b = rng.normal(size=(8, 3)) * scales, rng.normal(size=(3, 5))
    return LowRank(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))


def test_apply_is_the_product_with_the_dense_matrix(
    factors: LowRank, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(2, 6, 8)).astype(np.float32)
    dense = np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
    np.testing.assert_allclose(factors.apply(jnp.asarray(x)), x @ dense, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(factors.dense(), dense, rtol=1e-5, atol=1e-4)


def test_size_and_rank(factors: LowRank) -> None:
    assert factors.size == 3 * (8 + 5)
    assert factors.rank == 3


def test_stacked_factors_apply_to_stacked_inputs(rng: np.random.Generator) -> None:
    a, b, x = (rng.normal(size=s).astype(np.float32) for s in ((4, 6, 2), (4, 2, 3), (4, 5, 6)))
    f = LowRank(jnp.asarray(a), jnp.asarray(b))
    assert f.rank == 2
    np.testing.assert_allclose(f.apply(jnp.asarray(x)), x @ a @ b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(f.dense(), a @ b, rtol=1e-4, atol=1e-5)


def test_balance_equalises_the_grams_and_keeps_the_product(factors: LowRank) -> None:
    f = balance(factors)
    singular = np.linalg.svd(np.asarray(factors.dense(), np.float64), compute_uv=False)[:3]
    np.testing.assert_allclose(f.dense(), factors.dense(), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(f.a.T @ f.a, np.diag(singular), atol=1e-5 * singular[0])
    np.testing.assert_allclose(f.b @ f.b.T, np.diag(singular), atol=1e-5 * singular[0])


def test_balance_of_a_rank_deficient_product_is_finite(factors: LowRank) -> None:
    f = LowRank(factors.a.at[:, 1].set(factors.a[:, 0]), factors.b.at[2].set(0))
    np.testing.assert_allclose(balance(f).dense(), f.dense(), rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("double")
def test_derivative_through_balance_is_that_of_the_product(rng: np.random.Generator) -> None:
    a, b, t = (jnp.asarray(rng.normal(size=s)) for s in ((6, 3), (3, 5), (6, 5)))

    def loss(f: LowRank) -> jax.Array:
        return jnp.sum(t * jnp.sin(f.dense()))

    plain = jax.grad(loss)(LowRank(a, b))
    through = jax.jit(jax.grad(lambda f: loss(balance(f))))(LowRank(a, b))
    np.testing.assert_allclose(through.a, plain.a, rtol=1e-9)
    np.testing.assert_allclose(through.b, plain.b, rtol=1e-9)


def test_weighted_error(factors: LowRank, rng: np.random.Generator) -> None:
    w, importance = rng.normal(size=(8, 5)), rng.exponential(size=(8, 5))
    dense = np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
    expected = np.sum(importance * (w - dense) ** 2)
    np.testing.assert_allclose(weighted_error(w, importance, factors), expected, rtol=1e-5)
