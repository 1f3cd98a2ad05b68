"""Second derivatives of truncated matrices against differences of first ones."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import LowRank, balance, nearest_kronecker, svd, weighted_svd

Matrix = Callable[..., np.ndarray]
RANK = 2
ONES = np.exp(np.random.default_rng(0).normal(size=(4, 5)))

OF: dict[str, Callable[[jax.Array], Any]] = {
    "svd": lambda w: svd(w, RANK),
    "svd of full rank": lambda w: svd(w, 4),
    "weighted": lambda w: weighted_svd(w, ONES, RANK, "separable"),
    "importance": lambda i: weighted_svd(np.sin(ONES), jnp.exp(i), RANK, "separable"),
    "balance": lambda a: balance(LowRank(a, jnp.sin(a.T) @ ONES)),
    "kronecker": lambda w: nearest_kronecker(w, ((2, 5), (2, 1)), RANK),
}


def loss(of: Callable[[jax.Array], Any]) -> Callable[[jax.Array], jax.Array]:
    def value(x: jax.Array) -> jax.Array:
        dense = of(x).dense()
        return jnp.sum(jnp.cos(jnp.arange(dense.size)).reshape(dense.shape) * jnp.sin(dense))

    return value


ALL: dict[str, Callable[[Callable[[jax.Array], jax.Array], jax.Array, jax.Array], jax.Array]] = {
    "hessian": lambda f, x, way: jnp.tensordot(jax.jit(jax.hessian(f))(x), way, axes=way.ndim),
    "reverse over reverse": lambda f, x, way: jax.jit(
        jax.grad(lambda x: jnp.sum(jax.grad(f)(x) * way))
    )(x),
    "forward over reverse": lambda f, x, way: jax.jit(
        lambda x: jax.jvp(jax.grad(f), (x,), (way,))[1]
    )(x),
    "reverse over forward": lambda f, x, way: jax.jit(
        jax.grad(lambda x: jax.jvp(f, (x,), (way,))[1])
    )(x),
}


def check(
    value: Callable[[jax.Array], jax.Array],
    x: Any,
    rng: np.random.Generator,
    ways: Sequence[str] = ("reverse over reverse", "forward over reverse"),
) -> None:
    """A second derivative along one direction."""
    x, way = jnp.asarray(x), jnp.asarray(rng.normal(size=np.shape(x)))
    gradient = jax.jit(jax.grad(value))
    expected = (gradient(x + 1e-5 * way) - gradient(x - 1e-5 * way)) / 2e-5
    for name in ways:
        found = ALL[name](value, x, way)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", list(OF))
def test_second_derivatives(name: str, rng: np.random.Generator) -> None:
    every = {"ways": list(ALL)} if name == "svd" else {}
    check(loss(OF[name]), rng.normal(size=(4, 5)), rng, **every)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_second_derivatives_of_a_tall_matrix(rng: np.random.Generator) -> None:
    check(loss(OF["svd"]), rng.normal(size=(6, 3)), rng)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_third_derivatives(rng: np.random.Generator) -> None:
    value = loss(OF["svd"])

    def squares(w: jax.Array) -> jax.Array:
        return jnp.sum(jax.grad(value)(w) ** 2)

    check(squares, rng.normal(size=(4, 5)), rng, ["forward over reverse"])


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_second_derivatives_at_repeated_singular_values(
    spectrum_matrix: Matrix, rng: np.random.Generator
) -> None:
    """Only the gap across the cut counts."""
    check(loss(OF["svd"]), spectrum_matrix(5, 4, np.array([2.0, 2.0, 1.0, 1.0])), rng)


@pytest.mark.slow
@pytest.mark.parametrize("w", [np.zeros((4, 4)), np.eye(4), np.ones((4, 4))])
def test_second_derivatives_are_finite_where_none_exist(w: np.ndarray) -> None:
    hessian = jax.jit(jax.hessian(lambda w: jnp.sum(svd(w, RANK).dense() ** 3)))
    assert np.isfinite(hessian(w.astype(np.float32))).all()


@pytest.mark.slow
def test_stacks_of_second_derivatives(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    hessian = jax.jit(jax.hessian(loss(OF["svd"])))
    found = jax.jit(jax.vmap(jax.hessian(loss(OF["svd"]))))(x)
    np.testing.assert_allclose(found, [np.asarray(hessian(w)) for w in x], atol=1e-3)
