"""Random maps without a matrix, against scipy's Hadamard matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard as reference

from lpaf_jax.linalg import fastfood, hadamard


@pytest.mark.parametrize("length", [1, 2, 16, 32, 64, 1024])
def test_hadamard_is_that_of_scipy(length: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, length)).astype(np.float32)
    found = hadamard(jnp.asarray(x))
    np.testing.assert_allclose(found, x @ reference(length), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(hadamard(found), length * x, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize(("d", "size"), [(50, 700), (1, 5), (30, 7)])
def test_a_map_is_the_product_of_its_parts(d: int, size: int) -> None:
    p = fastfood(jax.random.key(1), d, size)
    length = len(p.signs)
    assert length == 2 ** int(np.ceil(np.log2(max(d, size))))
    h = reference(length).astype(np.float64)
    turn = np.eye(length)[np.asarray(p.order)]
    whole = h @ np.diag(p.normal) @ turn @ h @ np.diag(p.signs)
    g = np.asarray(p.normal, np.float64)
    expected = whole[:size, :d] / np.sqrt(size * np.sum(g**2))
    found = np.asarray(jax.vmap(p, out_axes=1)(jnp.eye(d)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sorted(np.asarray(p.order)) == list(range(length))


def test_columns_have_norm_1_and_are_nearly_orthogonal() -> None:
    p = fastfood(jax.random.key(0), 40, 3000)
    columns = np.asarray(jax.vmap(p, out_axes=1)(jnp.eye(40)), np.float64)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1, atol=0.1)
    assert np.abs(columns.T @ columns - np.eye(40)).max() < 0.2
    others = np.asarray(jax.vmap(fastfood(jax.random.key(1), 40, 3000), out_axes=1)(jnp.eye(40)))
    assert np.abs(columns.T @ others).max() < 0.2


def test_the_gradient_is_that_of_the_matrix() -> None:
    p = fastfood(jax.random.key(0), 6, 20)
    matrix = np.asarray(jax.vmap(p, out_axes=1)(jnp.eye(6)))
    weight = np.random.default_rng(0).normal(size=20).astype(np.float32)
    found = jax.jit(jax.grad(lambda theta: jnp.vdot(weight, p(theta))))(jnp.ones(6))
    np.testing.assert_allclose(found, matrix.T @ weight, atol=1e-5)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="power of two, got 12"):
        hadamard(jnp.ones(12))
    with pytest.raises(ValueError, match="d must be at least 1"):
        fastfood(jax.random.key(0), 0, 3)
    with pytest.raises(TypeError, match="size must be a Python integer"):
        fastfood(jax.random.key(0), 2, 3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a vector of at most 4"):
        fastfood(jax.random.key(0), 2, 3)(jnp.ones(5))
