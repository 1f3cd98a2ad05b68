"""Rows of Fisher information without gradients of matrices: exact, sketched, from adapters."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from lpaf_jax.checkpoints import load_model
from lpaf_jax.data import packed, train_batches
from lpaf_jax.importance import IMPORTANCES, Subject, fisher_scores, measure
from lpaf_jax.importance.lora import lora_rows, sketched_rows
from lpaf_jax.importance.rows import fisher_rows
from lpaf_jax.models import as_function, compressible, fixed_arrays, parameters
from lpaf_jax.models.lora import adapters, add_adapters
from lpaf_jax.train import CLASSIFICATION, LANGUAGE
from tests.encoders import folder as folder
from tests.encoders import model as model
from tests.encoders import tensors as tensors
from tests.encoders import write_folder as write_folder
from tests.tiny_decoder import VOCABULARY, write_decoder

LOSS = CLASSIFICATION.loss


@pytest.fixture
def batches() -> list[dict[str, Any]]:
    """Two of three rows, of which one only fills up."""
    random = np.random.default_rng(0)
    length = 7
    found = []
    for _ in range(2):
        ids = random.integers(1, 61, (3, length))
        lengths = np.array([length, length - 2, 3])
        found.append(
            {
                "input_ids": ids,
                "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int32),
                "token_type_ids": np.zeros_like(ids),
                "labels": random.integers(0, 3, 3).astype(np.int32),
                "weight": np.array([1, 1, 0], np.float32),
            }
        )
    return found


@pytest.fixture
def expected(model: Any, batches: Any) -> dict[str, np.ndarray]:
    """From the gradient of every matrix, example by example."""
    scores = fisher_scores(as_function(model), parameters(model), batches, LOSS)
    return {path.removesuffix(".kernel"): np.asarray(x).sum(1) for path, x in scores.items()}


def test_rows_are_those_of_the_whole_diagonal(model: Any, batches: Any, expected: Any) -> None:
    found = fisher_rows(model, batches, LOSS)
    assert found.keys() == expected.keys()
    for path, rows in expected.items():
        np.testing.assert_allclose(found[path], rows, rtol=2e-3, atol=1e-5 * rows.max())


def test_the_mean_of_many_sketches_is_the_exact_one(
    model: Any, batches: Any, expected: Any
) -> None:
    """To five deviations of that many squared projections, `√2` of their mean each."""
    draws, rank = 4, 64  # each call compiles: few draws of many directions
    found: dict[str, Any] = {}
    for seed in range(draws):
        for path, rows in sketched_rows(model, batches, LOSS, rank=rank, seed=seed).items():
            found.setdefault(path, []).append(np.asarray(rows))
    assert found.keys() == expected.keys()
    for path, rows in expected.items():
        mean, spread = np.mean(found[path], 0), np.sqrt(2 / (rank * draws)) * rows
        assert (np.abs(mean - rows) < 5 * spread + 1e-3 * rows.max()).all()
        # It is an estimate of each row, and not of their mean alone.
        assert np.corrcoef(mean, rows)[0, 1] > 0.95


@pytest.mark.parametrize("by", ["gradient", "taylor"])
def test_what_adapters_say_is_as_written(model: Any, batches: Any, by: Any) -> None:
    """ĝ formed whole, by adapters that are trained as those are."""
    twin = nnx.clone(model)
    add_adapters(twin, 4, scale=2.0, seed=3)
    forward, params = as_function(twin), parameters(twin)
    dense, held = parameters(model), fixed_arrays(twin)
    optimizer = optax.adamw(1e-4, weight_decay=0.0)
    state = optimizer.init(params)
    gradient = jax.grad(lambda p, one: LOSS(forward(p, held, one), one))
    for one in batches:
        updates, state = optimizer.update(gradient(params, one), state, params)
        params = optax.apply_updates(params, updates)
    expected = {path: np.zeros(len(layer.lora_a[...])) for path, layer in adapters(twin).items()}
    for one in batches:
        grads = gradient(params, one)
        for path in expected:
            a, b = (np.asarray(params[f"{path}.lora_{s}"], np.float64) for s in "ab")
            to_a, to_b = (np.asarray(grads[f"{path}.lora_{s}"], np.float64) for s in "ab")
            whole = a @ to_b + to_a @ b
            if by == "taylor":
                whole *= np.asarray(dense[f"{path}.kernel"]) + 2.0 * a @ b
            expected[path] += np.square(whole).sum(1) / len(batches)
    found = lora_rows(model, lambda: batches, LOSS, by=by, rank=4, seed=3)
    assert found.keys() == expected.keys()
    for path, rows in expected.items():
        np.testing.assert_allclose(found[path], rows, rtol=1e-3, atol=1e-4 * rows.max())


@pytest.mark.parametrize("name", ["fisher-rows", "lora-sketch", "lora", "lora-taylor"])
def test_each_is_an_importance(model: Any, batches: Any, name: str) -> None:
    before = {path: np.asarray(x) for path, x in parameters(model).items()}
    weights = compressible(parameters(model))
    subject = Subject(model, weights, {}, {}, {}, lambda count=None: batches[:count], LOSS)
    found = measure(IMPORTANCES[name], subject)
    assert found.keys() == weights.keys()
    for path, weighting in found.items():
        assert weighting.left.shape == weights[path].shape[:1]
        assert np.isfinite(weighting.left).all()
        assert (np.asarray(weighting.left) >= 0).all()
        assert weighting.left.max() > 0
    after = parameters(model)
    assert all(np.array_equal(after[path], x) for path, x in before.items())


@pytest.mark.parametrize("name", ["fisher", "fisher-rows", "lora-sketch", "lora", "lora-taylor"])
def test_windows_of_a_text_have_labels_of_no_columns(name: str, tmp_path: Path) -> None:
    model = load_model(write_decoder(tmp_path / "llama", "llama"), head="lm")
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (6, 9)).astype(np.int32)
    data = packed(list(ids), pad_id=0)
    batches = list(train_batches(data, 3, seed=0, epoch=0))
    assert batches[0]["labels"].shape == (3, 0)
    weights = compressible(parameters(model))
    loss = LANGUAGE.loss
    subject = Subject(model, weights, {}, {}, {}, lambda count=None: batches[:count], loss)
    found = measure(IMPORTANCES[name], subject)
    for weighting in found.values():
        [weights_of] = [x for x in weighting if x is not None]
        assert 0 < float(weights_of.max()) < np.inf


@pytest.mark.parametrize("find", [fisher_rows, sketched_rows])
def test_gradients_far_below_float32_squared_still_say_which_rows_matter(
    model: Any, batches: Any, find: Any
) -> None:
    usual = find(model, batches, LOSS)
    small = find(model, batches, lambda outputs, batch: 1e-24 * LOSS(outputs, batch))
    for path, rows in usual.items():
        found = np.asarray(small[path], np.float64)
        largest = max(float(x.max()) for x in small.values())
        expected = np.asarray(rows) / max(float(x.max()) for x in usual.values())
        np.testing.assert_allclose(found / largest, expected, rtol=1e-2, atol=1e-5)


def test_nothing_to_learn_from_is_refused(model: Any, batches: Any) -> None:
    empty = [{**one, "weight": np.zeros(3, np.float32)} for one in batches]
    for find in (fisher_rows, sketched_rows):
        with pytest.raises(ValueError, match="no example"):
            find(model, empty, LOSS)
    with pytest.raises(ValueError, match="no batch"):
        lora_rows(model, list, LOSS)
