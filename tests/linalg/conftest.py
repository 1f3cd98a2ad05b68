import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

Matrix = Callable[..., np.ndarray]


@pytest.fixture(autouse=True)
def _strict_promotion() -> Iterator[None]:
    """No float64 constant slips into a float32 solve here, and no vector is taken for a row."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240817)


@pytest.fixture
def spectrum_matrix(rng: np.random.Generator) -> Matrix:
    """A matrix with prescribed singular values and random singular vectors."""

    def make(m: int, n: int, s: np.ndarray) -> np.ndarray:
        u = np.linalg.qr(rng.normal(size=(m, len(s))))[0]
        v = np.linalg.qr(rng.normal(size=(n, len(s))))[0]
        return (u * s) @ v.T

    return make


@pytest.fixture
def compiled_cost() -> Callable[..., tuple[int, int]]:
    """FLOP of a function, and the number of entries of the largest array it forms when compiled."""

    def of(function: Callable[..., Any], *arguments: Any) -> tuple[int, int]:
        lowered = jax.jit(function).lower(*arguments)
        shapes = re.findall(r"[a-z]\d+\[([\d,]+)\]", lowered.compile().as_text())
        largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
        return int(lowered.cost_analysis()["flops"]), largest

    return of
