"""Spectra in units of what one cut does, against the cut model itself."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from lpaf_jax.checkpoints import load_model
from lpaf_jax.factorization import factorize, to_low_rank
from lpaf_jax.factorization.measured import measured_spectra
from lpaf_jax.importance import TWO_SIDED, Subject, measure
from lpaf_jax.linalg import LowRank, svd
from lpaf_jax.models import compressible, parameters
from lpaf_jax.ranks import choose_ranks, loss_spectrum
from lpaf_jax.solvers import Solution
from lpaf_jax.train import CLASSIFICATION
from tests.tiny import WORDS, Tiny

RANKS = {
    "bert.encoder.layer.0.attention.self.query.kernel": 1,
    "bert.encoder.layer.1.output.dense.kernel": 3,
}


def batches(_: Any = None) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {
            "input_ids": rng.integers(4, len(WORDS), (4, 6)).astype(np.int32),
            "attention_mask": np.ones((4, 6), np.int32),
            "labels": np.array([0, 1, 1, 0], np.int32),
            "weight": np.ones(4, np.float32),
        }
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def subject(tiny: Tiny) -> Subject:
    model = load_model(tiny.model, num_labels=2)
    weights = compressible(parameters(model))
    loss, divergence = CLASSIFICATION.loss, CLASSIFICATION.divergence
    return Subject(model, weights, {}, {}, {}, batches, loss, divergence)


@pytest.fixture(scope="module")
def spectra(subject: Subject) -> dict[str, np.ndarray]:
    found = measure(TWO_SIDED, subject)
    return {path: loss_spectrum(w, found[path]) for path, w in subject.weights.items()}


def answers(model: Any) -> np.ndarray:
    inputs = ("input_ids", "attention_mask")
    found = [model(**{name: jnp.asarray(b[name]) for name in inputs}) for b in batches()]
    return np.concatenate([np.asarray(x, np.float64) for x in found])


def apart(first: np.ndarray, second: np.ndarray) -> float:
    p, q = softmax(first, axis=-1), softmax(second, axis=-1)
    return float(np.mean(0.5 * np.sum((p - q) * (np.log(p) - np.log(q)), axis=-1)))


def test_a_spectrum_says_what_the_cut_does(
    tiny: Tiny, subject: Subject, spectra: dict[str, np.ndarray]
) -> None:
    cut = {path: Solution(svd(subject.weights[path], k)) for path, k in RANKS.items()}
    found = measured_spectra(subject, spectra, cut)
    before, factors = answers(subject.model), []
    for path, solution in cut.items():
        model = load_model(tiny.model, num_labels=2)
        to_low_rank(model, {path: solution})
        seen = apart(before, answers(model))
        tail = found[path][RANKS[path] :]
        assert 0.5 * np.sum(tail**2) == pytest.approx(seen, rel=1e-3)
        factors.append((found[path] / spectra[path])[0] ** 2)
    for path in spectra.keys() - cut.keys():  # of which nothing was measured
        ratio = np.median(factors)
        np.testing.assert_allclose(found[path], np.sqrt(ratio) * spectra[path], rtol=1e-6)


def test_a_cut_that_changes_nothing_loses_its_ranks(
    subject: Subject, spectra: dict[str, np.ndarray]
) -> None:
    path = next(iter(RANKS))
    cut = {p: Solution(svd(w, 2)) for p, w in subject.weights.items()}
    whole = subject.weights[path]
    cut[path] = Solution(LowRank(whole, jnp.eye(whole.shape[1])))
    # A rank that the matrix has not: the spectrum promises a change that does not come.
    padded = spectra | {path: np.concatenate([spectra[path], [1.0]])}
    found = measured_spectra(subject, padded, cut)
    assert np.isfinite(found[path]).all()
    assert found[path][0] < 0.1 * spectra[path][0] * np.median(
        [found[p][0] / spectra[p][0] for p in spectra if p != path]
    )


def test_ranks_by_what_was_measured(subject: Subject, spectra: dict[str, np.ndarray]) -> None:
    chosen = {"importance": "two-sided", "solver": "metric", "params": 0.5}
    first = factorize(subject, ranks="loss", **chosen)
    expected = choose_ranks(
        "measured",
        {path: (w.shape[0], w.shape[1]) for path, w in subject.weights.items()},
        params=0.5,
        spectra=measured_spectra(subject, spectra, first),
    )
    found = factorize(subject, ranks="measured", **chosen)
    assert {p: s.factors.rank for p, s in found.items()} == {
        p: k for p, k in expected.items() if k is not None
    }
    assert {p: s.factors.rank for p, s in found.items()} != {
        p: s.factors.rank for p, s in first.items()
    }
