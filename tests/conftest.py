"""Settings that must stand before jax and its BLAS are loaded."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# OpenBLAS threads wait by spinning: on cores that are busy, a small SVD takes 30 times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Iterator

import jax
import pytest

pytest_plugins = ["tests.tiny", "tests.tiny_tasks"]

# Packages whose tests compile much and compute next to nothing.
_COMPILE_QUICKLY = ("compress", "importance", "linalg", "train")


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Arrays and models this small wait for the compiler alone."""
    before = jax.config.read("jax_disable_most_optimizations")
    quick = request.path.parent.name in _COMPILE_QUICKLY
    jax.config.update("jax_disable_most_optimizations", before or quick)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
