"""LPAF and its neighbours: low-rank compression of transformer models in JAX.

`lpaf_jax.pipeline.compress` is the main job; the linear algebra, `lpaf_jax.linalg`, works alone.
"""

__version__ = "0.1.0"
