import jax.numpy as jnp
import numpy as np

from lpaf_jax.importance import IMPORTANCES, Moment, Weighting
from lpaf_jax.solvers import SOLVERS


def test_rows_are_weighted_by_the_mean_squares_of_their_inputs() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(50, 6)) * np.geomspace(0.1, 10, 6), rng.normal(size=(6, 8))
    moment = Moment(jnp.asarray(x.T @ x / 50), jnp.asarray(x.mean(0)), 50)
    importance = IMPORTANCES["activations-diagonal"]
    assert importance.of_inputs is not None
    weighting = importance.of_inputs(Weighting(), moment)
    found = SOLVERS["metric"].solve(jnp.asarray(w, jnp.float32), weighting, 3, 0.0).factors
    rows = np.sqrt((x**2).mean(0))
    u, s, vt = np.linalg.svd(rows[:, None] * w, full_matrices=False)
    best = (u[:, :3] * s[:3]) @ vt[:3] / rows[:, None]
    np.testing.assert_allclose(np.asarray(found.a) @ np.asarray(found.b), best, atol=1e-4)
