"""What all encoders with all heads must do: agree with PyTorch, mask, drop out, stay finite."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import (
    LowRankLinear,
    as_function,
    bert,
    compressible_layers,
    distilbert,
    encoder,
    layer_at,
    parameters,
    replace_layer,
    roberta,
)
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.models.layers import ACTIVATIONS

pytest.importorskip("torch")

from tests.models.twins import (
    CASES,
    POSITIONS,
    positions,
    sentences,
    torch_maps,
    torch_model,
    torch_outputs,
    twin,
)

BATCHES: dict[str, dict[str, np.ndarray]] = {
    "right": sentences(),
    "left": sentences(left=True),
    "bare": {"input_ids": sentences()["input_ids"]},
    "positions": sentences() | {"position_ids": positions()},
}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Family, head, the model of PyTorch and ours: read them, never change them."""
    theirs = torch_model(*request.param)
    return *request.param, theirs, twin(theirs, tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="module")
def outputs(jit: Any) -> Any:
    return jit(lambda model, batch: model.with_hidden(**batch))


@pytest.mark.parametrize("kind", BATCHES)
def test_logits_and_hidden_states_are_those_of_pytorch(case: Any, outputs: Any, kind: str) -> None:
    family, head, theirs, ours = case
    logits, states = torch_outputs(theirs, BATCHES[kind])
    found, hidden = outputs(ours, BATCHES[kind])
    assert type(ours) is FAMILIES[family].heads[head]
    assert found.shape == logits.shape
    np.testing.assert_allclose(found, logits, atol=1e-4)
    assert len(hidden) == len(states) == 3
    for one, other in zip(hidden, states, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert np.ptp(logits, axis=0).max() > 0.1, "the inputs would not tell one row from another"


def test_attention_is_that_of_pytorch(case: Any) -> None:
    _, _, theirs, ours = case
    batch = BATCHES["right"]
    forward = as_function(ours, maps=True)
    found = jax.jit(forward)(parameters(ours), {}, batch).maps
    assert found is not None
    for one, other in zip(found, torch_maps(theirs, batch), strict=True):
        np.testing.assert_allclose(np.exp(one), other, atol=1e-5)
    assert jax.jit(as_function(ours, hidden=True))(parameters(ours), {}, batch).maps is None


@pytest.mark.parametrize(
    ("family", "activation"),
    [*(("bert", name) for name in ACTIVATIONS), ("roberta", "relu"), ("distilbert", "gelu_new")],
)
def test_activations_and_regression(
    family: str, activation: str, outputs: Any, tmp_path: Path
) -> None:
    changes = {"num_hidden_layers": 1, "hidden_act": activation, "num_labels": 1}
    if family == "distilbert":
        changes = {"n_layers": 1, "activation": activation, "num_labels": 1}
    theirs = torch_model(family, "classification", **changes)
    found, _ = outputs(twin(theirs, tmp_path), BATCHES["right"])
    assert found.shape == (3, 1)
    np.testing.assert_allclose(found, torch_outputs(theirs, BATCHES["right"])[0], atol=1e-4)


def test_gradients_are_finite_and_reach_all(case: Any, jit: Any) -> None:
    """With a row of padding alone, which must not become NaN."""
    batch = sentences()
    batch["attention_mask"][2] = 0
    forward = as_function(case[3])

    @jit
    def gradients(params: Any) -> Any:
        return jax.grad(lambda params: jnp.sum(jnp.square(forward(params, {}, batch))))(params)

    for path, g in gradients(parameters(case[3])).items():
        assert np.isfinite(g).all(), path
        # A bias of the keys adds the same to all scores of a query, and softmax does not see it.
        if not path.endswith(("self.key.bias", "k_lin.bias")):
            assert np.any(g), path


def test_a_row_of_padding_alone_leaves_the_others_alone(case: Any, outputs: Any) -> None:
    batch = sentences()
    batch["attention_mask"][2] = 0
    found, plain = (outputs(case[3], b)[0] for b in (batch, BATCHES["right"]))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:2], plain[:2])


def test_bfloat16_is_close_to_float32(case: Any, outputs: Any, jit: Any) -> None:
    """Hidden states within 2 % of their size, five roundings of 8 bits; logits within 5 %."""
    forward = jit(as_function(case[3], hidden=True, dtype=jnp.bfloat16))
    narrow = forward(parameters(case[3]), {}, BATCHES["right"])
    assert narrow.logits.dtype == narrow.hidden.dtype == jnp.float32
    logits, hidden = outputs(case[3], BATCHES["right"])
    for found, exact in zip(narrow.hidden, hidden, strict=True):
        assert 1e-4 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.02
    assert 1e-4 < np.linalg.norm(narrow.logits - logits) / np.linalg.norm(logits) < 0.05


def test_dropout_has_a_key_of_its_own_at_every_site_and_is_used(
    case: Any, jit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, head, _, ours = case
    seen: list[tuple[float, Any]] = []

    @jit
    @partial(jax.grad, has_aux=True)
    def slopes(scales: Any) -> Any:
        """Of the logits, by a factor at every site; and the keys."""

        def record(x: Any, rate: float, key: Any) -> Any:
            seen.append((rate, key))
            return x * scales[len(seen) - 1]

        for module in (bert, distilbert, encoder, roberta):
            monkeypatch.setattr(module, "dropout", record)
        logits = ours(**BATCHES["right"], key=jax.random.key(0))
        return jnp.sum(jnp.square(logits)), [jax.random.key_data(key) for _, key in seen]

    found, keys = slopes(jnp.ones(9))
    assert np.all(found[: len(seen)] != 0)
    assert len(np.unique(keys, axis=0)) == len(seen)
    # Attention weights of two layers; the embeddings and, but for DistilBERT's projections of
    # attention, two outputs a layer.
    expected = {0.25: 2, 0.125: 3 if family == "distilbert" else 5}
    at_the_head = {  # by the prefix: what is there is that of the family it is built of
        "bert-classification": {0.5: 1},
        "roberta-classification": {0.5: 2},
        "distilbert-classification": {0.5: 1},
        "distilbert-span": {0.375: 1},
    }
    there = f"{FAMILIES[family].prefix}-{head}"
    assert Counter(rate for rate, _ in seen) == expected | at_the_head.get(there, {})


def test_inputs_end_where_the_positions_end(case: Any) -> None:
    family, head, _, ours = case
    longest = POSITIONS - 2 if FAMILIES[family].prefix == "roberta" else POSITIONS
    assert ours.positions == longest

    def shape(length: int) -> tuple[int, ...]:
        return jax.eval_shape(lambda: ours(jnp.zeros((1, length), jnp.int32))).shape

    assert shape(longest) == ((1, 3) if head == "classification" else (1, longest, 2))
    with pytest.raises(LpafError, match=f"{longest + 1} tokens exceed the {longest} pos"):
        shape(longest + 1)


def test_a_new_model_is_drawn_from_its_key(case: Any) -> None:
    family, head, theirs, _ = case
    config = FAMILIES[family].config(theirs.config.to_dict())
    one, same, other = (
        parameters(FAMILIES[family].heads[head](config, jax.random.key(seed))) for seed in (0, 0, 1)
    )
    drawn = [path for path, array in one.items() if array.ndim == 2]
    for path in drawn:
        np.testing.assert_array_equal(one[path], same[path])
        assert not np.allclose(one[path], other[path]), path
        assert 0.01 < one[path].std() < 0.03, path
    assert len({one[path].tobytes() for path in drawn}) == len(drawn), "a key was used twice"


def test_a_folder_without_a_head_gets_one(case: Any, outputs: Any, tmp_path: Path) -> None:
    _, head, theirs, ours = case
    theirs.base_model.save_pretrained(tmp_path)
    labels = 5 if head == "classification" else None
    bare = load_model(tmp_path, head=head, num_labels=labels)
    assert type(bare) is type(ours)
    logits, hidden = outputs(bare, BATCHES["right"])
    assert logits.shape == ((3, 5) if labels else (3, 9, 2))
    np.testing.assert_array_equal(hidden[-1], outputs(ours, BATCHES["right"])[1][-1])


def test_what_is_saved_is_read_by_pytorch(case: Any, tmp_path: Path) -> None:
    _, head, theirs, ours = case
    theirs.config.save_pretrained(tmp_path)
    names = ["a", "b", "c"] if head == "classification" else None
    save_model(ours, tmp_path / "out", source=tmp_path, label_names=names, card="")
    again, info = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    logits = torch_outputs(again.eval(), BATCHES["right"])[0]
    np.testing.assert_allclose(logits, torch_outputs(theirs, BATCHES["right"])[0], atol=1e-6)


def test_a_factorized_model_is_read_again(case: Any, tmp_path: Path) -> None:
    family, _, theirs, ours = case
    model = nnx.clone(ours)
    layers = compressible_layers(parameters(model))
    assert len(layers) == 2 * 6
    for i, path in enumerate(layers):
        dense = layer_at(model, path)
        factors = LowRank(dense.kernel[...][:, : 2 + i % 3], dense.kernel[...][: 2 + i % 3])
        replace_layer(model, path, LowRankLinear(factors, dense.bias[...]))
    theirs.config.architectures = [type(theirs).__name__]
    theirs.config.save_pretrained(tmp_path)
    save_model(model, tmp_path / "out", source=tmp_path, label_names=None, card="")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["model_type"] == f"lpaf_{family}"
    assert values["architectures"] == [f"Lpaf{type(theirs).__name__}"]
    again = load_model(tmp_path / "out")
    assert type(again) is type(ours)
    assert parameters(again).keys() == parameters(model).keys()
    for path, array in parameters(model).items():
        np.testing.assert_array_equal(parameters(again)[path], array)
