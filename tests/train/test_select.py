"""The k largest of several arrays against numpy's stable sort."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lpaf_jax.train import keep_largest

SHAPES = ((2, 3), (4,), (1, 1, 2))
TOTAL = 12

# Compiled once: every case below has these shapes.
keep = jax.jit(lambda arrays, count: keep_largest(list(arrays), count))


def oracle(arrays: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Stable sort of all entries, largest first; of equal ones the earlier come first."""
    flat = np.concatenate([x.reshape(-1) for x in arrays]).astype(np.float64)
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:count]] = True
    cuts = np.cumsum([x.size for x in arrays])[:-1]
    return [m.reshape(x.shape) for m, x in zip(np.split(mask, cuts), arrays, strict=True)]


def spread(values: np.ndarray) -> list[np.ndarray]:
    values = np.asarray(values, np.float32)
    sizes = [int(np.prod(s)) for s in SHAPES]
    return [
        x.reshape(s) for x, s in zip(np.split(values, np.cumsum(sizes)[:-1]), SHAPES, strict=True)
    ]


def check(values: np.ndarray, count: int, run: Callable = keep) -> None:
    parts = spread(values)
    for found, expected in zip(run(tuple(parts), count), oracle(parts, count), strict=True):
        assert found.dtype == bool
        np.testing.assert_array_equal(found, expected)


TINY = np.finfo(np.float32).smallest_subnormal
CASES = {
    "distinct": np.random.default_rng(0).normal(size=TOTAL),
    "all equal": np.full(TOTAL, 2.5),
    "all zero": np.zeros(TOTAL),
    "few values": np.array([1, 0, -1, 1, 0, -1, 1, 0, -1, 1, 0, -1]),
    "negative": -np.arange(1.0, TOTAL + 1),
    "signed zeros": np.array([-0.0, 0.0] * 6),
    "signed zeros among others": np.array([0.0, -1, -0.0, 1, 0.0, -0.0] * 2),
    "denormal": np.array([TINY, -TINY, 3 * TINY, 0, 2 * TINY, -3 * TINY] * 2),
    "infinite": np.array([np.inf, -np.inf, 1, 3e38, -3e38, 0] * 2),
    "neighbours": 1 + np.finfo(np.float32).eps * np.arange(TOTAL),
}


@pytest.mark.parametrize("name", CASES)
def test_every_count(name: str) -> None:
    for count in range(TOTAL + 1):
        check(CASES[name], count)


@pytest.mark.parametrize("name", ["few values", "signed zeros", "denormal", "infinite"])
def test_not_compiled(name: str) -> None:
    # The compiler may simplify arithmetic that an operation by itself would do.
    check(CASES[name], 5, run=lambda parts, count: keep_largest(list(parts), count))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    arrays(np.float32, TOTAL, elements=st.floats(width=32, allow_nan=False)),
    st.integers(0, TOTAL),
)
def test_any_floats(values: np.ndarray, count: int) -> None:
    check(values, count)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    arrays(np.float32, TOTAL, elements=st.sampled_from([-2, -0.0, 0.0, 1, 2])),
    st.integers(0, TOTAL),
)
def test_any_ties(values: np.ndarray, count: int) -> None:
    check(values, count)


def test_under_vmap_with_a_count_each() -> None:
    names, counts = ["distinct", "few values", "signed zeros", "infinite"], [3, 5, 7, 12]
    parts = [spread(CASES[name]) for name in names]
    stacked = tuple(np.stack(same) for same in zip(*parts, strict=True))
    found = jax.jit(jax.vmap(lambda a, c: keep_largest(list(a), c)))(stacked, np.array(counts))
    for i, (case, count) in enumerate(zip(parts, counts, strict=True)):
        for got, expected in zip(found, oracle(case, count), strict=True):
            np.testing.assert_array_equal(got[i], expected)


def test_many_entries_and_ties() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=20_000).astype(np.float32).round(1)
    for count in (1, 777, 10_000, 19_999):
        (found,) = keep((values,), count)
        np.testing.assert_array_equal(found, oracle([values], count)[0])


def test_nothing_to_choose_from() -> None:
    assert keep_largest([], 0) == []
