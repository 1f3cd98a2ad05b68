"""RoBERTa's positions, counted from the tokens and not from the mask, and its configuration."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.roberta import RobertaConfig

VALUES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}


@pytest.mark.parametrize("pad", [0, 1, 7])
def test_positions_are_those_of_pytorch(pad: int, jit: Any, tmp_path: Any) -> None:
    """Padding right, left, between and everywhere; a masked token that is no padding counts."""
    pytest.importorskip("torch")
    from tests.models.twins import torch_model, torch_outputs, twin

    theirs = torch_model("roberta", "classification", pad_token_id=pad, num_hidden_layers=1)
    ours = twin(theirs, tmp_path)
    # As long as the model reads: the last token of the first row has the last embedding.
    length = 20 - pad - 1
    ids = np.random.default_rng(0).integers(pad + 1, 61, (5, length)).astype(np.int32)
    ids[1, 6:] = ids[2, :4] = ids[3, 2:5] = ids[4] = pad
    mask = np.ones_like(ids)
    mask[0, 3:5] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    expected, states = torch_outputs(theirs, batch)
    logits, hidden = jit(lambda batch: ours.with_hidden(**batch))(batch)
    np.testing.assert_allclose(hidden[0], states[0], atol=1e-5)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    places = np.asarray(ours.roberta.embeddings.places(jnp.asarray(ids)))
    np.testing.assert_array_equal(places[0], np.arange(pad + 1, 20))
    np.testing.assert_array_equal(places[3, :6], pad + np.array([1, 2, 0, 0, 0, 3]))


def test_configurations_of_transformers_have_its_defaults() -> None:
    config = RobertaConfig.from_json(VALUES)
    assert (config.pad_token_id, config.positions, config.type_vocab_size) == (1, 18, 2)
    assert (config.layer_norm_eps, config.num_labels, config.head_dropout) == (1e-12, 2, 0.1)
    assert RobertaConfig.from_json({**VALUES, "id2label": {"0": "score"}}).num_labels == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_token_id": None}, "pad_token_id None leaves none of the 20 positions"),
        ({"pad_token_id": 19}, "pad_token_id 19 leaves none of the 20 positions"),
        ({"pad_token_id": -1}, "pad_token_id -1 leaves none of the 20 positions"),
        ({"is_decoder": True}, "only encoders are supported"),
        ({"hidden_act": "mish"}, "'mish' is not one of"),
        ({"num_attention_heads": 5}, "not a multiple of num_attention_heads"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LpafError, match=message):
        RobertaConfig.from_json(VALUES | changes)


def test_a_field_that_is_missing_is_named() -> None:
    values = {name: value for name, value in VALUES.items() if name != "hidden_size"}
    with pytest.raises(LpafError, match="not a RoBERTa configuration.*hidden_size"):
        RobertaConfig.from_json(values)
