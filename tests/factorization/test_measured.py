"""Spectra in units of what one cut does, against the cut model itself."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.factorization import factorize, to_factors
from lpaf_jax.factorization.blocks import compress_decoder
from lpaf_jax.factorization.dense import Plan
from lpaf_jax.factorization.measured import Changed, divergences, measured_spectra, scaled
from lpaf_jax.factorization.store import Store
from lpaf_jax.importance import TWO_SIDED, Subject, measure
from lpaf_jax.linalg import LowRank, svd
from lpaf_jax.models import compressible, parameters
from lpaf_jax.ranks import choose_ranks, loss_spectrum
from lpaf_jax.solvers import Solution
from lpaf_jax.train import CLASSIFICATION
from tests.tiny import WORDS, Tiny
from tests.tiny_decoder import LENGTH, VOCABULARY, write_decoder

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
        to_factors(model, {path: solution})
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


@pytest.mark.slow
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


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_models_with_one_matrix_cut_walk_through_the_blocks_together(
    tmp_path: Path, family: str
) -> None:
    source = DecoderOnDisk(write_decoder(tmp_path / family, family))
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (6, LENGTH)).astype(np.int32)
    weights = compressible(parameters(load_model(source.folder, head="lm")))
    shift = 0.1 * jnp.arange(3 * 32) if family == "gpt2" else None
    pairs: dict[str, Solution] = {}
    for path, w in weights.items():
        bias = shift if shift is not None and shift.shape == (w.shape[1],) else None
        pairs[path.removesuffix(".kernel")] = Solution(svd(w, 2), bias)
    cuts = {path: Changed(pair.factors.dense(), pair.bias) for path, pair in pairs.items()}
    said: list[str] = []
    found = divergences(
        source,
        tokens,
        lambda index: [
            each for each in cuts.items() if each[0].startswith(f"{source.prefix(index)}.")
        ],
        said.append,
    )
    assert len(said) == source.blocks + len(tokens)
    assert found.keys() == cuts.keys()

    def log_p(model: Any) -> np.ndarray:
        return log_softmax(np.asarray(model(tokens), np.float64), axis=-1)

    dense = log_p(load_model(source.folder, head="lm"))
    for path in list(cuts)[:: 3 if family == "llama" else 2]:
        model = load_model(source.folder, head="lm")
        to_factors(model, {f"{path}.kernel": pairs[path]})
        apart = np.sum(np.exp(dense) * (dense - log_p(model)), axis=-1)
        assert found[path] == pytest.approx(apart.mean(), rel=1e-3), path


def test_ranks_of_a_decoder_by_what_was_measured(tmp_path: Path) -> None:
    source = DecoderOnDisk(write_decoder(tmp_path / "llama", "llama"))
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (6, LENGTH)).astype(np.int32)
    ranks = {}
    for rule in ("loss", "measured"):
        plan = Plan("two-sided", "metric", rule, params=0.6)
        store = Store(tmp_path / rule)
        compress_decoder(source, tokens, plan, store)
        ranks[rule] = store.ranks()
        assert not (tmp_path / rule / "states").exists()
    seen = store.seen()
    assert seen is not None
    shapes = source.matrices()
    spectra, first = {}, {}
    for index in range(source.blocks):
        for name, array in store.sides(index, "spectrum", "a").items():
            path, _, kind = name.rpartition(":")
            if kind == "spectrum":
                spectra[path] = array
            else:
                first[path] = array.shape[1]
    assert set(first.values()) == {1}  # a tenth of the rank at which factors are as large
    expected = choose_ranks("loss", shapes, params=0.6, spectra=scaled(spectra, first, seen))
    assert ranks["measured"] == expected != ranks["loss"]
