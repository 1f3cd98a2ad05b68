"""Second moments of activations against loops over tokens, here and in PyTorch."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.factorization import to_factors
from lpaf_jax.importance import activation_moments
from lpaf_jax.linalg import svd
from lpaf_jax.models import compressible, parameters
from lpaf_jax.solvers import Solution
from tests.tiny import HIDDEN, INNER, LAYERS, WORDS, Tiny

LAYER = "bert.encoder.layer"


def batches() -> Iterator[dict[str, np.ndarray]]:
    """Rows of several lengths, padded with real words; the last row of each only fills it up."""
    rng = np.random.default_rng(3)
    for width in (7, 5):
        mask = np.arange(width) < np.array([width, 3, 1, width])[:, None]
        ids = rng.integers(4, len(WORDS), (4, width))
        weight = np.array([1, 1, 1, 0], np.float32)
        yield {
            "input_ids": ids.astype(np.int32),
            "attention_mask": mask.astype(np.int32),
            "token_type_ids": np.zeros_like(ids, np.int32),
            "labels": np.zeros(4, np.int32),
            "weight": weight,
        }


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Any:
    return load_model(tiny.model, num_labels=2)


def mean_of_outer_products(rows: Iterator[np.ndarray]) -> tuple[np.ndarray, int]:
    outer = [np.outer(x, x) for x in (row.astype(np.float64) for row in rows)]
    return np.mean(outer, axis=0), len(outer)


def tokens(states: np.ndarray, batch: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """The rows of `states`, (batch, length, width), that belong to words of examples."""
    for i, j in np.argwhere(batch["attention_mask"] > 0):
        if batch["weight"][i] > 0:
            yield states[i, j]


def test_is_the_mean_over_real_tokens_of_outer_products(model: Any) -> None:
    found = activation_moments(model, batches())
    rows: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]
    for batch in batches():
        ids, mask, types = (batch[k] for k in ("input_ids", "attention_mask", "token_type_ids"))
        _, hidden = model.with_hidden(ids, mask, types)
        for i in range(LAYERS):
            rows[i] += tokens(np.asarray(hidden[i]), batch)
    for i in range(LAYERS):
        expected, count = mean_of_outer_products(iter(rows[i]))
        for name in ("query", "key", "value"):
            second, mean, counted, _ = found[f"{LAYER}.{i}.attention.self.{name}"]
            assert counted == count == 11 + 9
            np.testing.assert_allclose(second, expected, rtol=2e-5, atol=1e-6)
            np.testing.assert_allclose(mean, np.mean(rows[i], axis=0), rtol=2e-5, atol=1e-6)


def test_every_layer_has_the_moment_of_what_pytorch_gives_it(model: Any, tiny: Tiny) -> None:
    torch = pytest.importorskip("torch")
    from transformers import BertModel

    theirs = BertModel.from_pretrained(tiny.model).eval()
    found = activation_moments(model, batches())
    rows: dict[str, list[np.ndarray]] = {path: [] for path in found}
    for batch in batches():
        seen: dict[str, np.ndarray] = {}
        hooks = [
            theirs.get_submodule(path.removeprefix("bert.")).register_forward_pre_hook(
                lambda _, given, path=path, seen=seen: seen.__setitem__(path, given[0].numpy())
            )
            for path in found
        ]
        names = ("input_ids", "attention_mask", "token_type_ids")
        with torch.no_grad():
            theirs(**{name: torch.tensor(batch[name]).long() for name in names})
        for path in found:
            rows[path] += tokens(seen[path], batch)
        for hook in hooks:
            hook.remove()
    assert list(found) == [
        f"{LAYER}.{i}.{name}"
        for i in range(LAYERS)
        for name in (
            *("attention.output.dense", "attention.self.key", "attention.self.query"),
            *("attention.self.value", "intermediate.dense", "output.dense"),
        )
    ]
    for path, (moment, mean, count, _) in found.items():
        expected, number = mean_of_outer_products(iter(rows[path]))
        np.testing.assert_allclose(mean, np.mean(rows[path], axis=0), rtol=3e-5, atol=2e-6)
        assert count == number
        side = INNER if path.endswith("output.dense") and "attention" not in path else HIDDEN
        assert moment.shape == (side, side)
        assert moment.dtype == jnp.float32
        np.testing.assert_allclose(moment, expected, rtol=3e-5, atol=2e-6)


def test_layers_with_one_input_share_one_sum(model: Any) -> None:
    found = activation_moments(model, batches())
    query, key, value = (
        found[f"{LAYER}.1.attention.self.{name}"].second for name in ("query", "key", "value")
    )
    assert query is key is value
    distinct = {id(moment.second) for moment in found.values()}
    assert len(distinct) == 4 * LAYERS  # of q, k and v; attention output; two of feed-forward


def test_the_model_stays_as_it_was(model: Any) -> None:
    before = {path: np.asarray(array) for path, array in parameters(model).items()}
    activation_moments(model, batches())
    after = parameters(model)
    assert list(after) == list(before)
    for path, array in after.items():
        np.testing.assert_array_equal(array, before[path])


def test_a_factorized_model_is_seen_too(model: Any, tiny: Tiny) -> None:
    factorized = load_model(tiny.model, num_labels=2)
    kernels = compressible(parameters(factorized))
    to_factors(factorized, {p: Solution(svd(w, min(w.shape))) for p, w in kernels.items()})
    expected = activation_moments(model, batches())
    for path, moment in activation_moments(factorized, batches()).items():
        for found, whole in zip(moment[:3], expected[path][:3], strict=True):
            np.testing.assert_allclose(found, whole, rtol=1e-3, atol=1e-4)


def test_each_shape_of_batch_is_compiled_once(model: Any) -> None:
    traced = []
    original = type(model).__call__

    def counted(self: Any, *args: Any, **named: Any) -> Any:
        traced.append(named["input_ids"].shape)
        return original(self, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "__call__", counted)
        activation_moments(model, [*batches(), *batches(), *batches()])
    # Once more than the shapes there are: the first is looked at for the shapes of the sums.
    assert traced == [(4, 7), (4, 7), (4, 5)]


def test_nothing_to_count_is_an_error(model: Any) -> None:
    with pytest.raises(ValueError, match="no token"):
        activation_moments(model, [])
    padding = next(batches())
    padding["weight"] = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="no token"):
        activation_moments(model, [padding])
