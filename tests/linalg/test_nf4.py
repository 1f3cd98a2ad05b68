"""Four bits a number: the table of the source, nearest values, scales, and what it all takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.linalg import Nf4, nf4, nf4_bytes, nf4_dense, nf4_matmul
from lpaf_jax.linalg.nf4 import TABLE

# As QLoRA's appendix E prints it.
PRINTED = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def test_the_table_is_the_printed_one() -> None:
    np.testing.assert_allclose(TABLE, PRINTED, atol=3e-7)


def by_hand(w: np.ndarray) -> np.ndarray:
    """In float64 by brute force: all 16 values tried for each number, scales by the formula."""
    flat = np.ravel(w).astype(np.float64)
    blocks = np.pad(flat, (0, -len(flat) % 64)).reshape(-1, 64)
    largest = np.abs(blocks).max(1)
    mean = largest.mean()
    found = np.zeros_like(blocks)
    for start in range(0, len(largest), 256):
        moved = largest[start : start + 256] - mean
        step = np.abs(moved).max() / 127
        units = np.rint(moved / step) if step > 0 else np.zeros_like(moved)
        for i, scale in enumerate(np.maximum(mean + units * step, 0), start):
            choices = scale * np.array(PRINTED)
            nearest = np.abs(blocks[i][:, None] - choices).argmin(1)
            found[i] = choices[nearest]
    return found.reshape(-1)[: w.size].reshape(w.shape)


@pytest.mark.parametrize("shape", [(64, 64), (7, 13), (1, 1), (3, 64 * 256), (40, 500)])
def test_each_number_is_the_nearest_value_of_its_block(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    w = random.normal(size=shape) * random.gamma(1.0, size=(shape[0], 1))
    found = np.asarray(nf4_dense(nf4(jnp.asarray(w, jnp.float32)), shape))
    expected = by_hand(w.astype(np.float32))
    # A number halfway between two values may take either, and a scale may round either way.
    near = np.isclose(found, expected, atol=1e-5 * np.abs(w).max())
    assert near.mean() > 0.99
    assert np.linalg.norm(found - w) <= 1.001 * np.linalg.norm(expected - w)


def test_it_takes_what_it_says() -> None:
    for shape in ((64, 64), (7, 13), (576, 1536), (1, 1)):
        held = sum(np.asarray(x).nbytes for x in nf4(jnp.ones(shape)))
        assert held == nf4_bytes(shape)
    assert 8 * nf4_bytes((4096, 4096)) / 4096**2 == pytest.approx(4.127, abs=5e-4)


def test_zeros_and_equal_blocks() -> None:
    np.testing.assert_array_equal(nf4_dense(nf4(jnp.zeros((5, 70))), (5, 70)), 0)
    np.testing.assert_allclose(nf4_dense(nf4(jnp.full((2, 64), -3.0)), (2, 64)), -3.0)


@pytest.mark.parametrize("power", [-60, -7, 40])
def test_it_goes_with_the_scale(power: int) -> None:
    w = np.random.default_rng(1).normal(size=(9, 33)).astype(np.float32)
    small = np.asarray(nf4_dense(nf4(jnp.asarray(w)), w.shape))
    large = np.asarray(nf4_dense(nf4(jnp.asarray(w * 2.0**power)), w.shape))
    np.testing.assert_allclose(large, small * 2.0**power, rtol=1e-5)


def test_under_jit_and_in_bfloat16() -> None:
    w = jax.random.normal(jax.random.key(0), (16, 24))
    q = jax.jit(nf4)(w)
    assert isinstance(q, Nf4)
    found = jax.jit(nf4_dense, static_argnums=(1, 2))(q, (16, 24), jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found, nf4_dense(nf4(w), (16, 24)), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (7, 13), (96, 16), (1, 64)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_product_is_that_of_the_dense_one(shape: tuple[int, int], dtype: Any) -> None:
    random = np.random.default_rng(0)
    q = nf4(jnp.asarray(random.normal(size=shape), jnp.float32))
    x = jnp.asarray(random.normal(size=(5, shape[0])), dtype)
    dense = nf4_dense(q, shape, dtype).astype(jnp.float32)
    wide = x.astype(jnp.float32)
    found, back = jax.vjp(lambda x: nf4_matmul(x, q, shape), x)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 2e-2, "atol": 5e-2}
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), wide @ dense, **near)
    (of_x,) = back(found)
    expected = found.astype(jnp.float32) @ dense.T
    np.testing.assert_allclose(of_x.astype(jnp.float32), expected, **(near | {"rtol": 3e-2}))


def test_many_matrices_are_never_there_at_once() -> None:
    """What a compiled step takes beside its arguments, in matrices of float32."""
    size, count = (512, 512), 8
    held = [nf4(jax.random.normal(jax.random.key(i), size)) for i in range(count)]

    def loss(x: Any, held: Any) -> Any:
        for q in held:
            x = jnp.tanh(nf4_matmul(x, q, size))
        return jnp.sum(jnp.square(x))

    x = jnp.ones((4, 512))
    for program in (loss, jax.value_and_grad(loss)):
        compiled = jax.jit(program).lower(x, held).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4 * 512 * 512


def test_what_has_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        nf4(jnp.zeros((0, 3)))
