"""RoBERTa (Liu et al., 2019) with a head for classification, or for spans.

The encoder is BERT's. What differs is where positions begin, and the classifier.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.bert import BertConfig, Embeddings, Encoder
from lpaf_jax.models.encoder import EncoderModel
from lpaf_jax.models.initial import Initializer, split_key
from lpaf_jax.models.layers import dropout


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The fields of a Hugging Face `config.json` that the computation depends on."""

    pad_token_id: int = 1

    family: ClassVar[str] = "RoBERTa"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read a parsed `config.json`.

        Raises:
            LpafError: a field is missing, or names a variant that is not built here.
        """
        config = super().from_json(values)
        pad, rows = config.pad_token_id, config.max_position_embeddings
        if pad is None or not 0 <= pad < rows - 1:
            raise LpafError(
                f"config.json: pad_token_id {pad} leaves none of the {rows} positions of "
                "max_position_embeddings"
            )
        return config

    @property
    def positions(self) -> int:
        """The longest input in tokens: rows up to that of the padding are for none."""
        return self.max_position_embeddings - self.pad_token_id - 1


class RobertaEmbeddings(Embeddings):
    def __init__(self, config: RobertaConfig, init: Initializer):
        super().__init__(config, init)
        self.pad = config.pad_token_id

    def places(self, input_ids: Array) -> Array:
        """Positions where none are given, whatever the mask says.

        Token i that is no padding is at `pad + 1 + (number of such tokens before it)`, and padding
        at `pad`.

        Source: `make_positions` of fairseq, and transformers.
        """
        real = (input_ids != self.pad).astype(input_ids.dtype)
        return jnp.cumsum(real, axis=-1, dtype=real.dtype) * real + self.pad


class Roberta(nnx.Module):
    def __init__(self, config: RobertaConfig, init: Initializer):
        self.embeddings = RobertaEmbeddings(config, init)
        self.encoder = Encoder(config, init)

    @property
    def layers(self) -> nnx.List:
        return self.encoder.layer


class ClassificationHead(nnx.Module):
    """`tanh(x W + c) V + d` of the first token, with dropout before each product."""

    def __init__(self, config: RobertaConfig, init: Initializer):
        self.dense = init.linear(config.hidden_size, config.hidden_size)
        self.out_proj = init.linear(config.hidden_size, config.num_labels)
        self.dropout_rate = config.head_dropout

    def __call__(self, x: Array, key: Array | None) -> Array:
        first, second = split_key(key, 2)
        x = jnp.tanh(self.dense(dropout(x[:, 0], self.dropout_rate, first)))
        return self.out_proj(dropout(x, self.dropout_rate, second))


class RobertaClassifier(EncoderModel):
    """Classes of a sequence or a pair, or one number of it, from the first token.

    Args:
        config: the shape of the model; `num_labels` 1 is regression.
        key: where initial tensors come from; a loaded checkpoint then replaces them.
    """

    prefix = "roberta"

    def __init__(self, config: RobertaConfig, key: Array):
        init = Initializer(key, config.initializer_range)
        self.roberta = Roberta(config, init)
        self.classifier = ClassificationHead(config, init)
        self.num_labels = config.num_labels
        self.positions = config.positions

    def head(self, x: Array, key: Array | None) -> Array:
        return self.classifier(x, key)


class RobertaSpans(EncoderModel):
    """Start and end of the answer to a question: logits (batch, length, 2) over the tokens.

    Args:
        config: the shape of the model; its `num_labels` says nothing here.
        key: where initial tensors come from; a loaded checkpoint then replaces them.
    """

    prefix = "roberta"

    def __init__(self, config: RobertaConfig, key: Array):
        init = Initializer(key, config.initializer_range)
        self.roberta = Roberta(config, init)
        self.qa_outputs = init.linear(config.hidden_size, 2)
        self.positions = config.positions

    def head(self, x: Array, key: Array | None) -> Array:
        return self.qa_outputs(x)
