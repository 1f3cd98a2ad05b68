"""BERT (Devlin et al., 2019) with a head for classification, or for spans.

Attribute names are those of the tensors in a Hugging Face checkpoint, so the path of a layer in
the model is its address in the file: `bert.encoder.layer.0.attention.self.query`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.configs import plain_values
from lpaf_jax.models.encoder import EncoderModel, attend, read_config
from lpaf_jax.models.initial import Initializer, split_key
from lpaf_jax.models.layers import activation, dropout


@dataclass(frozen=True)
class BertConfig:
    """The fields of a Hugging Face `config.json` that the computation depends on."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    num_labels: int = 2
    initializer_range: float = 0.02

    family: ClassVar[str] = "BERT"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read a parsed `config.json`.

        Raises:
            LpafError: a field is missing, or names a variant that is not built here.
        """
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise LpafError("config.json: only absolute position embeddings are supported")
        if values.get("is_decoder"):
            raise LpafError("config.json: is_decoder is set, but only encoders are supported")
        config = read_config(cls, plain_values(values), cls.family)
        activation(config.hidden_act)
        if config.hidden_size % config.num_attention_heads:
            raise LpafError("config.json: hidden_size is not a multiple of num_attention_heads")
        return config

    @property
    def head_dropout(self) -> float:
        """Dropout before the last layer of a classifier."""
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate


class Embeddings(nnx.Module):
    def __init__(self, config: BertConfig, init: Initializer):
        hidden = config.hidden_size
        self.word_embeddings = init.embedding(config.vocab_size, hidden)
        self.position_embeddings = init.embedding(config.max_position_embeddings, hidden)
        self.token_type_embeddings = init.embedding(config.type_vocab_size, hidden)
        self.LayerNorm = init.layer_norm(hidden, config.layer_norm_eps)
        self.dropout_rate = config.hidden_dropout_prob

    def places(self, input_ids: Array) -> Array:
        """Positions where none are given: those of the array, padding counted."""
        return jnp.arange(input_ids.shape[-1])

    def __call__(
        self, input_ids: Array, token_type_ids: Array, position_ids: Array | None, key: Array | None
    ) -> Array:
        places = self.places(input_ids) if position_ids is None else position_ids
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings(places)
        return dropout(self.LayerNorm(x), self.dropout_rate, key)


class SelfAttention(nnx.Module):
    def __init__(self, config: BertConfig, init: Initializer):
        hidden = config.hidden_size
        self.query = init.linear(hidden, hidden)
        self.key = init.linear(hidden, hidden)
        self.value = init.linear(hidden, hidden)
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob

    def __call__(self, x: Array, bias: Array, key: Array | None) -> Array:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return attend(q, k, v, bias, heads=self.heads, rate=self.dropout_rate, key=key)


class Residual(nnx.Module):
    """A projection, added to what went in before, then normalised."""

    def __init__(self, config: BertConfig, inner: int, init: Initializer):
        self.dense = init.linear(inner, config.hidden_size)
        self.LayerNorm = init.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(self, x: Array, before: Array, key: Array | None) -> Array:
        return self.LayerNorm(dropout(self.dense(x), self.dropout_rate, key) + before)


class Attention(nnx.Module):
    def __init__(self, config: BertConfig, init: Initializer):
        self.self = SelfAttention(config, init)
        self.output = Residual(config, config.hidden_size, init)

    def __call__(self, x: Array, bias: Array, keys: tuple[Array | None, ...]) -> Array:
        return self.output(self.self(x, bias, keys[0]), x, keys[1])


class Intermediate(nnx.Module):
    def __init__(self, config: BertConfig, init: Initializer):
        self.dense = init.linear(config.hidden_size, config.intermediate_size)
        self.activation = config.hidden_act

    def __call__(self, x: Array) -> Array:
        return activation(self.activation)(self.dense(x))


class Layer(nnx.Module):
    def __init__(self, config: BertConfig, init: Initializer):
        self.attention = Attention(config, init)
        self.intermediate = Intermediate(config, init)
        self.output = Residual(config, config.intermediate_size, init)

    def __call__(self, x: Array, bias: Array, key: Array | None) -> Array:
        keys = split_key(key, 3)
        x = self.attention(x, bias, keys[:2])
        return self.output(self.intermediate(x), x, keys[2])


class Encoder(nnx.Module):
    def __init__(self, config: BertConfig, init: Initializer):
        self.layer = nnx.List([Layer(config, init) for _ in range(config.num_hidden_layers)])


class Pooler(nnx.Module):
    def __init__(self, config: BertConfig, init: Initializer):
        self.dense = init.linear(config.hidden_size, config.hidden_size)


class Bert(nnx.Module):
    def __init__(self, config: BertConfig, init: Initializer):
        self.embeddings = Embeddings(config, init)
        self.encoder = Encoder(config, init)

    @property
    def layers(self) -> nnx.List:
        return self.encoder.layer


class PooledBert(Bert):
    def __init__(self, config: BertConfig, init: Initializer):
        super().__init__(config, init)
        self.pooler = Pooler(config, init)


class BertClassifier(EncoderModel):
    """Classes of a sequence or a pair, or one number of it, from the pooled first token.

    Args:
        config: the shape of the model; `num_labels` 1 is regression.
        key: where initial tensors come from; a loaded checkpoint then replaces them.
    """

    prefix = "bert"

    def __init__(self, config: BertConfig, key: Array):
        init = Initializer(key, config.initializer_range)
        self.bert = PooledBert(config, init)
        self.classifier = init.linear(config.hidden_size, config.num_labels)
        self.num_labels = config.num_labels
        self.dropout_rate = config.head_dropout
        self.positions = config.max_position_embeddings

    def head(self, x: Array, key: Array | None) -> Array:
        pooled = jnp.tanh(self.bert.pooler.dense(x[:, 0]))
        return self.classifier(dropout(pooled, self.dropout_rate, key))


class BertSpans(EncoderModel):
    """Start and end of the answer to a question: logits (batch, length, 2) over the tokens.

    Args:
        config: the shape of the model; its `num_labels` says nothing here.
        key: where initial tensors come from; a loaded checkpoint then replaces them.
    """

    prefix = "bert"

    def __init__(self, config: BertConfig, key: Array):
        init = Initializer(key, config.initializer_range)
        self.bert = Bert(config, init)
        self.qa_outputs = init.linear(config.hidden_size, 2)
        self.positions = config.max_position_embeddings

    def head(self, x: Array, key: Array | None) -> Array:
        return self.qa_outputs(x)
