import jax.numpy as jnp
import numpy as np

from lpaf_jax.importance import Weighting
from lpaf_jax.solvers import SOLVERS


def test_is_the_least_error_of_all_affine_maps() -> None:
    """Principal components of the outputs about their mean, in float64."""
    random = np.random.default_rng(0)
    x = random.normal(3.0, 1.0, (400, 6)) * np.geomspace(0.3, 3, 6)
    w, mean = random.normal(size=(6, 8)), x.mean(0)
    y = x @ w
    centred = y - y.mean(0)
    _, _, vt = np.linalg.svd(centred, full_matrices=False)
    best = np.square(centred - centred @ vt[:2].T @ vt[:2]).sum()
    weighting = Weighting(left=jnp.asarray(np.cov(x.T, bias=True)), mean=jnp.asarray(mean))
    factors, bias = SOLVERS["affine"].solve(jnp.asarray(w), weighting, 2, 0.0)
    assert bias is not None
    found = np.square(y - (x @ np.asarray(factors.dense()) + np.asarray(bias))).sum()
    np.testing.assert_allclose(found, best, rtol=1e-3)
