import jax.numpy as jnp
import numpy as np

from lpaf_jax.importance import IMPORTANCES, Moment, Weighting


def test_is_the_covariance_and_the_mean_of_the_inputs() -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(50, 6))
    moment = Moment(jnp.asarray(x.T @ x / 50), jnp.asarray(x.mean(0)), 50)
    importance = IMPORTANCES["centred"]
    assert importance.of_inputs is not None
    found = importance.of_inputs(Weighting(), moment)
    np.testing.assert_allclose(found.left, np.cov(x.T, bias=True), atol=1e-4)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-6)
    assert importance.gives == {"left", "mean"}
