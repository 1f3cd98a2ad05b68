"""DistilBERT's configuration, whose names are its own, and the token types it has not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models import compressible, parameters
from lpaf_jax.models.distilbert import DistilBertClassifier, DistilBertConfig

VALUES = {"vocab_size": 61, "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 48}


def test_token_types_are_ignored(jit: Any) -> None:
    model = DistilBertClassifier(DistilBertConfig(**VALUES), jax.random.key(0))
    forward = jit(lambda types: model(jnp.arange(8).reshape(2, 4), None, types))
    np.testing.assert_array_equal(*(forward(jnp.full((2, 4), i)) for i in range(2)))


def test_six_kernels_a_block_are_compressible() -> None:
    params = parameters(DistilBertClassifier(DistilBertConfig(**VALUES), jax.random.key(0)))
    attention = {f"attention.{name}_lin.kernel": (32, 32) for name in ("q", "k", "v", "out")}
    block = attention | {"ffn.lin1.kernel": (32, 48), "ffn.lin2.kernel": (48, 32)}
    expected = {f"distilbert.transformer.layer.0.{name}": shape for name, shape in block.items()}
    assert {path: array.shape for path, array in compressible(params).items()} == expected


def test_configurations_have_the_defaults_of_transformers() -> None:
    config = DistilBertConfig.from_json(VALUES)
    rates = config.dropout, config.attention_dropout, config.seq_classif_dropout, config.qa_dropout
    assert rates == (0.1, 0.1, 0.2, 0.1)
    assert (config.activation, config.max_position_embeddings, config.num_labels) == (
        "gelu",
        512,
        2,
    )
    assert DistilBertConfig.from_json({**VALUES, "id2label": {"0": "score"}}).num_labels == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "mish"}, "'mish' is not one of"),
        ({"n_heads": 5}, "dim is not a multiple of n_heads"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LpafError, match=message):
        DistilBertConfig.from_json(VALUES | changes)


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(LpafError, match="not a DistilBERT configuration.*n_layers"):
        DistilBertConfig.from_json({k: v for k, v in VALUES.items() if k != "n_layers"})
