"""Matrices of a decoder that are pruned without training before they are factorized."""

from pathlib import Path

import numpy as np
import pytest

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.core.errors import SettingError
from lpaf_jax.factorization.blocks import compress_decoder
from lpaf_jax.factorization.dense import Plan
from lpaf_jax.factorization.store import Store
from lpaf_jax.importance import activation_moments
from lpaf_jax.linalg import sparsegpt
from lpaf_jax.models import layer_at
from lpaf_jax.runs.settings import make_settings
from tests.closed_forms import nearest
from tests.tiny_decoder import LENGTH, VOCABULARY, write_decoder

TOKENS = (np.random.default_rng(1).zipf(1.3, (24, LENGTH)) % VOCABULARY).astype(np.int32)


def test_factors_are_those_of_what_sparsegpt_leaves(tmp_path: Path) -> None:
    """In the first block, which is given what the dense model is; held against the dense matrix."""
    folder = write_decoder(tmp_path / "gpt2", "gpt2")
    store = Store(tmp_path / "work")
    plan = Plan(ranks="uniform", params=0.6, pruned_to=0.4)
    compress_decoder(DecoderOnDisk(folder), TOKENS, plan, store)
    model, kept = load_model(folder, head="lm"), store.block(0)
    moments = activation_moments(model, [{"input_ids": TOKENS}])
    assert kept is not None
    tensors, cuts = kept
    assert len(cuts) == 4
    for cut in cuts:
        w, second = layer_at(model, cut.path).kernel[...], moments[cut.path].second
        left = np.asarray(sparsegpt(w, second, 0.4), np.float64)
        assert np.count_nonzero(left) == round(0.4 * left.size)
        down, up = (tensors[f"{cut.path}.{n}.weight"].T for n in ("down", "up"))
        assert cut.record is not None
        expected = nearest(left, cut.record["rank"], np.asarray(second, np.float64))
        np.testing.assert_allclose(down @ up, expected, atol=2e-4 * abs(expected).max())
        lost = np.asarray(w, np.float64) - expected
        error = np.trace(lost.T @ second @ lost) / np.trace(w.T @ second @ w)
        assert cut.error == pytest.approx(error, rel=1e-2)


def test_with_a_task_a_recipe_prunes_in_a_stage_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError,
        match=r"pruned_to \(given, or set by the recipe\) works only for a decoder without a task",
    ):
        make_settings("minilm", task="rotten_tomatoes", recipe="sparsegpt-svd", out=tmp_path)
    with pytest.raises(SettingError, match="pruned_to is 0.0, but must be in"):
        make_settings("m", calibration="a.txt", recipe="sparsegpt-svd", pruned_to=0.0, out=tmp_path)
