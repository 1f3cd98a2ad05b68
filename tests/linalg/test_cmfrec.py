"""The minimum is that of cmfrec, an ALS solver in C with exact Cholesky solves."""

from typing import Any

import numpy as np
import pytest

from lpaf_jax.linalg import LowRank, weighted_als

cmfrec = pytest.importorskip("cmfrec", reason="cmfrec is built from source; see `make bench`")
SHAPE, RANK = (30, 20), 3


def by_cmfrec(w: Any, importance: Any, ridge: float, iterations: int) -> LowRank:
    """Factors after some iterations, always from the same start."""
    model = cmfrec.CMF(
        k=RANK,
        lambda_=ridge,
        method="als",
        use_cg=False,
        niter=iterations,
        center=False,
        user_bias=False,
        item_bias=False,
        scale_lam=False,
        use_float=False,
        precompute_for_predictions=False,
        verbose=False,
        nthreads=1,
        random_state=1,
    )
    model.fit(w, W=importance)
    return LowRank(model.A_, model.B_.T)


@pytest.mark.usefixtures("double")
# With a small ridge it needs more iterations, at a hundredth of a second each.
@pytest.mark.parametrize(
    ("spread", "ridge", "iterations"),
    [(0.5, 3.0, 60), (1.5, 3.0, 60), (0.5, 0.3, 300), (1.5, 0.3, 300)],
)
def test_minimum_is_that_of_cmfrec_from_the_same_start(
    spread: float, ridge: float, iterations: int, rng: np.random.Generator
) -> None:
    # So low a rank under noise that every start leads to one minimum.
    w = rng.normal(size=(SHAPE[0], RANK)) @ rng.normal(size=(RANK, SHAPE[1]))
    w += 0.5 * rng.normal(size=SHAPE)
    importance = np.exp(spread * rng.normal(size=SHAPE))
    importance /= importance.mean()

    def objective(f: LowRank) -> float:
        penalty = np.sum(np.square(f.a)) + np.sum(np.square(f.b))
        return float(np.sum(importance * np.square(w - f.a @ f.b)) + ridge * penalty)

    start, end = (by_cmfrec(w, importance, ridge, n) for n in (1, iterations))
    assert objective(end) < 0.99 * objective(start)
    ours, info = weighted_als(w, importance, RANK, ridge=ridge, init=start, tol=1e-9)
    assert objective(end) == pytest.approx(float(info.objective[-1]), rel=1e-4)
    np.testing.assert_allclose(ours.dense(), end.a @ end.b, atol=1e-3)
