"""Settings that must stand before jax and its BLAS are loaded."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# OpenBLAS threads wait by spinning: on cores that are busy, a small SVD takes 30 times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

pytest_plugins = ["tests.tiny"]
