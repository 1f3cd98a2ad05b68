"""LPAF and its neighbours: low-rank compression of transformer models in JAX.

The main job is `lpaf_jax.pipeline.compress`; the linear algebra, `lpaf_jax.linalg`, is usable alone.
"""

__version__ = "0.1.0"
