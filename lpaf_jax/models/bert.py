"""BERT (Devlin et al., 2019) with a classification head.

Attribute names are those of the tensors in a Hugging Face checkpoint, so the path of a layer in
the model is its address in the file: `bert.encoder.layer.0.attention.self.query`.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.errors import LpafError
from lpaf_jax.models.initial import Initializer, split_key
from lpaf_jax.models.layers import Embedding, activation, dropout


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

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "BertConfig":
        """Read a parsed `config.json`.

        Raises:
            LpafError: a field is missing, or names a variant of BERT that is not built here.
        """
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        if "num_labels" not in known and "id2label" in values:
            known["num_labels"] = len(values["id2label"])
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise LpafError("config.json: only absolute position embeddings are supported")
        if values.get("is_decoder"):
            raise LpafError("config.json: is_decoder is set, and only encoders are supported")
        try:
            config = cls(**known)
        except TypeError as error:
            raise LpafError(f"config.json is not a BERT configuration: {error}") from None
        activation(config.hidden_act)
        if config.hidden_size % config.num_attention_heads:
            raise LpafError("config.json: hidden_size is not a multiple of num_attention_heads")
        return config


class Embeddings(nnx.Module):
    def __init__(self, config: BertConfig, init: Initializer):
        hidden = config.hidden_size
        self.word_embeddings = Embedding(init.normal(config.vocab_size, hidden))
        self.position_embeddings = Embedding(init.normal(config.max_position_embeddings, hidden))
        self.token_type_embeddings = Embedding(init.normal(config.type_vocab_size, hidden))
        self.LayerNorm = init.layer_norm(hidden, config.layer_norm_eps)
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(self, input_ids: Array, token_type_ids: Array, key: Array | None) -> Array:
        # JAX would clamp an index beyond the table, and every further token sit at the last place.
        length, limit = input_ids.shape[-1], self.position_embeddings.weight.shape[0]
        if length > limit:
            raise LpafError(f"{length} tokens are more than the {limit} positions of the model")
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings(jnp.arange(length))
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
        def split_heads(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], self.heads, -1)

        q, k, v = (split_heads(layer(x)) for layer in (self.query, self.key, self.value))
        # Softmax over narrow numbers loses the small weights.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
        weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]) + bias, axis=-1)
        weights = dropout(weights.astype(x.dtype), self.dropout_rate, key)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)


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
        self.pooler = Pooler(config, init)


class BertClassifier(nnx.Module):
    """Sequence (or sentence-pair) classification on the pooled first token.

    Args:
        config: the shape of the model.
        key: where initial tensors come from; a loaded checkpoint then replaces them.
    """

    def __init__(self, config: BertConfig, key: Array):
        init = Initializer(key)
        self.bert = Bert(config, init)
        self.classifier = init.linear(config.hidden_size, config.num_labels)
        self.num_labels = config.num_labels
        self.positions = config.max_position_embeddings
        rate = config.classifier_dropout
        self.dropout_rate = config.hidden_dropout_prob if rate is None else rate

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array,
        *,
        key: Array | None = None,
    ) -> Array:
        """Logits.

        Args:
            input_ids: token ids, (batch, length).
            attention_mask: 1 for a token, 0 for padding, (batch, length).
            token_type_ids: segment of each token, (batch, length).
            key: draws the dropout of a training pass; None for evaluation.

        Returns:
            logits, (batch, labels).

        Raises:
            LpafError: the length is beyond the position embeddings.
        """
        return self.with_hidden(input_ids, attention_mask, token_type_ids, key=key)[0]

    def with_hidden(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array,
        *,
        key: Array | None = None,
    ) -> tuple[Array, list[Array]]:
        """Logits, and the hidden states after the embeddings and after every layer.

        Each is (batch, length, hidden). Arguments and errors are those of a call.
        """
        layers = self.bert.encoder.layer
        keys = split_key(key, len(layers) + 2)
        # Minus infinity would make a row of padding alone NaN.
        floor = jnp.finfo(jnp.float32).min
        bias = jnp.where(attention_mask[:, None, None, :] > 0, 0.0, floor)
        x = self.bert.embeddings(input_ids, token_type_ids, keys[0])
        hidden = [x]
        for layer, layer_key in zip(layers, keys[2:], strict=True):
            hidden.append(layer(hidden[-1], bias, layer_key))
        pooled = jnp.tanh(self.bert.pooler.dense(hidden[-1][:, 0]))
        return self.classifier(dropout(pooled, self.dropout_rate, keys[1])), hidden
