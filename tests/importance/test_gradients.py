"""Moments of output gradients against one gradient after the other, on a tiny encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpaf_jax.checkpoints import load_model
from lpaf_jax.importance import TWO_SIDED, Subject, gradient_moments, measure
from lpaf_jax.importance.gradients import shrunk
from lpaf_jax.models import parameters
from lpaf_jax.models.functional import inputs_of, layer_at
from lpaf_jax.train import CLASSIFICATION, LANGUAGE, REGRESSION, SPANS, Objective
from tests.tiny import WORDS, Tiny
from tests.tiny_decoder import VOCABULARY, write_decoder

Batch = dict[str, np.ndarray]
ENCODER = [
    "bert.encoder.layer.0.attention.self.query",
    "bert.encoder.layer.0.intermediate.dense",
    "bert.encoder.layer.1.attention.self.value",
    "bert.encoder.layer.1.output.dense",
]
DECODER = ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"]
ROWS, LENGTH = 5, 6


def rows(vocabulary: int, labels: np.ndarray) -> Batch:
    """Texts of several lengths, padded with words."""
    rng = np.random.default_rng(5)
    ids = rng.integers(4, vocabulary, (ROWS, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < np.array([LENGTH, 3, 2, LENGTH, 4])[:, None]
    return {
        "input_ids": ids,
        "attention_mask": mask.astype(np.int32),
        "labels": labels,
        "weight": np.ones(ROWS, np.float32),
    }


class Case:
    """A model, its loss, what it reads, and four of its layers."""

    def __init__(self, model: Any, objective: Objective, batch: Batch, paths: list[str]):
        self.model, self.loss, self.batch, self.paths = model, objective.loss, batch, paths

    def found(self, *batches: Batch) -> dict[str, np.ndarray]:
        moments = gradient_moments(self.model, batches, self.loss, self.paths)
        return {path: np.asarray(moment, np.float64) for path, moment in moments.items()}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("numbers", "spans")]


@pytest.fixture(scope="module", params=["classes", *LONG, "next token"])
def case(request: Any, tiny: Tiny, decoder: Path) -> Case:
    labels = np.array([0, 1, 1, 0, 2], np.int32)
    if request.param == "classes":
        model = load_model(tiny.model, num_labels=3)
        return Case(model, CLASSIFICATION, rows(len(WORDS), labels), ENCODER)
    if request.param == "numbers":
        model = load_model(tiny.model, num_labels=1)
        return Case(model, REGRESSION, rows(len(WORDS), labels.astype(np.float32)), ENCODER)
    if request.param == "spans":
        model = load_model(tiny.model, head="span")
        return Case(model, SPANS, rows(len(WORDS), np.stack([labels % 2, labels % 2], 1)), ENCODER)
    model = load_model(decoder, head="lm")
    return Case(model, LANGUAGE, rows(VOCABULARY, labels), DECODER)


def part(batch: Batch, *of: int, length: int = LENGTH) -> Batch:
    """Some rows, cut to a length."""
    cut = {name: x[list(of)] for name, x in batch.items()}
    return cut | {name: cut[name][:, :length] for name in ("input_ids", "attention_mask")}


def by_hand(case: Case) -> dict[str, np.ndarray]:
    """The loss of each row alone, without padding, differentiated by the biases of each token."""
    total: dict[str, Any] = dict.fromkeys(case.paths, 0.0)
    split = nnx.split(case.model)

    @jax.jit
    @jax.grad
    def per_token(biases: Any, alone: Batch) -> Any:
        model = nnx.merge(*split)
        for path, value in biases.items():
            layer_at(model, path).bias = nnx.Param(value)  # each token has one of its own
        return case.loss(model(**inputs_of(alone)).astype(jnp.float32), alone)

    for i in range(ROWS):
        length = int(case.batch["attention_mask"][i].sum())
        biases = {path: layer_at(case.model, path).bias[...] for path in case.paths}
        tiled = {path: jnp.tile(bias, (length, 1)) for path, bias in biases.items()}
        for path, found in per_token(tiled, part(case.batch, i, length=length)).items():
            g = np.asarray(found, np.float64)
            total[path] = total[path] + g.T @ g
    return {path: np.asarray(x / ROWS) for path, x in total.items()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for path, moment in expected.items():
        size = np.abs(moment).max()
        assert size > 0
        np.testing.assert_allclose(found[path], moment, rtol=1e-3, atol=2e-5 * size, err_msg=path)


def test_is_the_mean_over_rows_of_one_gradient_for_each_token(case: Case) -> None:
    same(case.found(case.batch), by_hand(case))


def test_batches_padding_and_filled_up_rows_change_nothing(case: Case) -> None:
    expected = case.found(case.batch)
    filled = part(case.batch, 4, 4, 0)
    filled["weight"] = np.array([1, 0, 0], np.float32)
    same(case.found(part(case.batch, 0, 3), part(case.batch, 1, 2, length=3), filled), expected)


def test_weights_of_tokens_count_those_of_weight_above_0(decoder: Path) -> None:
    case = Case(load_model(decoder, head="lm"), LANGUAGE, rows(VOCABULARY, np.zeros(5)), DECODER)
    whole = part(case.batch, 0, 3)
    weighed = whole | {"weight": np.ones((2, LENGTH), np.float32)}
    same(case.found(weighed), case.found(whole))
    weighed["weight"][1] = 0  # fills the batch up
    same(case.found(weighed), case.found(part(case.batch, 0)))


def shrinking(loss: Callable[..., Any], scale: float) -> Callable[..., Any]:
    return lambda outputs, batch: loss(outputs, batch) * scale


@pytest.mark.parametrize("scale", [2.0**-83, 2.0**80])  # about 1e-25
def test_squares_of_gradients_far_from_1(tiny: Tiny, scale: float) -> None:
    """They are to each other what they were: of batches, and of layers."""
    labels = np.array([0, 1, 1, 0, 2], np.int32)
    model = load_model(tiny.model, num_labels=3)
    case = Case(model, CLASSIFICATION, rows(len(WORDS), labels), ENCODER)
    parts = [part(case.batch, 0, 3), part(case.batch, 1, 2)]
    usual = case.found(*parts)
    case.loss = shrinking(case.loss, scale)
    found = case.found(*parts)
    ratio = found[ENCODER[0]].max() / usual[ENCODER[0]].max()
    same(found, {path: ratio * moment for path, moment in usual.items()})
    assert np.log2(ratio) % 2 == pytest.approx(0, abs=1e-3)
    metric = measure(TWO_SIDED, subject(case, parts))
    assert all(float(jnp.trace(w.right)) > 0 for w in metric.values() if w.right is not None)


def subject(case: Case, batches: list[Batch]) -> Subject:
    params = parameters(case.model)
    weights = {f"{path}.kernel": params[f"{path}.kernel"] for path in case.paths}
    return Subject(case.model, weights, {}, {}, {}, lambda n=None: batches[:n], case.loss)


def test_a_later_batch_of_larger_gradients_does_not_overflow(tiny: Tiny) -> None:
    model = load_model(tiny.model, num_labels=3)
    batch = rows(len(WORDS), np.array([0, 1, 1, 0, 2], np.int32))
    case = Case(model, CLASSIFICATION, batch, ENCODER)

    def loss(outputs: Any, of: Any) -> Any:
        usual = CLASSIFICATION.loss(outputs, of)
        return jnp.where(of["labels"][0] == 2, usual * 2.0**60, usual * 2.0**-60)

    case.loss = loss
    large = case.found(part(batch, 4))
    for order in ([0, 1, 2, 3], [4]), ([4], [0, 1, 2, 3]):
        found = case.found(*(part(batch, *of) for of in order))
        same(found, {path: moment / 5 for path, moment in large.items()})


def test_the_model_stays_as_it_was_and_is_traced_once(case: Case) -> None:
    traced = []
    original = type(case.model).__call__

    def counted(self: Any, *args: Any, **named: Any) -> Any:
        traced.append(named["input_ids"].shape)
        return original(self, *args, **named)

    before = {path: np.asarray(x) for path, x in parameters(case.model).items()}
    layers = [layer_at(case.model, path) for path in case.paths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(case.model), "__call__", counted)
        case.found(part(case.batch, 0, 1), part(case.batch, 2, 3), part(case.batch, 4, 1))
    assert traced == [(2, LENGTH)]
    assert all(
        layer is layer_at(case.model, p) for layer, p in zip(layers, case.paths, strict=True)
    )
    after = parameters(case.model)
    assert list(after) == list(before)
    for path, x in after.items():
        np.testing.assert_array_equal(x, before[path])


def test_nothing_to_count_is_an_error(case: Case) -> None:
    filled = case.batch | {"weight": np.zeros(ROWS, np.float32)}
    for batches in ([], [filled]):
        with pytest.raises(ValueError, match="no example"):
            case.found(*batches)


def test_what_few_tokens_say_is_mixed_with_its_trace() -> None:
    moment = np.diag([4.0, 2.0, 0.0])
    found = shrunk(jnp.asarray(moment), 0.1)
    np.testing.assert_allclose(found, 0.9 * moment + 0.2 * np.eye(3), rtol=1e-6)
