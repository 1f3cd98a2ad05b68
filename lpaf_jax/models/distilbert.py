"""DistilBERT (Sanh et al., 2019) with a head for classification, or for spans.

BERT without token types and pooler, under names of its own. Its norms have ε = 1e-12 whatever the
configuration says, and no dropout follows the projection of attention.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.configs import plain_values
from lpaf_jax.models.encoder import EncoderModel, attend, read_config
from lpaf_jax.models.initial import Initializer, split_key
from lpaf_jax.models.layers import activation, dropout

_EPSILON = 1e-12
# As the `attribute_map` of transformers has them.
_ALIASES = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
}


@dataclass(frozen=True)
class DistilBertConfig:
    """The fields of a Hugging Face `config.json` that the computation depends on."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int
    max_position_embeddings: int = 512
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    qa_dropout: float = 0.1
    num_labels: int = 2
    initializer_range: float = 0.02

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DistilBertConfig":
        """Read a parsed `config.json`.

        Raises:
            LpafError: a field is missing, or names a variant that is not built here.
        """
        config = read_config(cls, plain_values(values, _ALIASES), "DistilBERT")
        activation(config.activation)
        if config.dim % config.n_heads:
            raise LpafError("config.json: dim is not a multiple of n_heads")
        return config


class Embeddings(nnx.Module):
    def __init__(self, config: DistilBertConfig, init: Initializer):
        self.word_embeddings = init.embedding(config.vocab_size, config.dim)
        self.position_embeddings = init.embedding(config.max_position_embeddings, config.dim)
        self.LayerNorm = init.layer_norm(config.dim, _EPSILON)
        self.dropout_rate = config.dropout

    def __call__(
        self, input_ids: Array, token_type_ids: Array, position_ids: Array | None, key: Array | None
    ) -> Array:
        places = jnp.arange(input_ids.shape[-1]) if position_ids is None else position_ids
        x = self.word_embeddings(input_ids) + self.position_embeddings(places)
        return dropout(self.LayerNorm(x), self.dropout_rate, key)


class Attention(nnx.Module):
    def __init__(self, config: DistilBertConfig, init: Initializer):
        self.q_lin = init.linear(config.dim, config.dim)
        self.k_lin = init.linear(config.dim, config.dim)
        self.v_lin = init.linear(config.dim, config.dim)
        self.out_lin = init.linear(config.dim, config.dim)
        self.heads = config.n_heads
        self.dropout_rate = config.attention_dropout

    def __call__(self, x: Array, bias: Array, key: Array | None) -> Array:
        q, k, v = self.q_lin(x), self.k_lin(x), self.v_lin(x)
        return self.out_lin(
            attend(q, k, v, bias, heads=self.heads, rate=self.dropout_rate, key=key)
        )


class FeedForward(nnx.Module):
    def __init__(self, config: DistilBertConfig, init: Initializer):
        self.lin1 = init.linear(config.dim, config.hidden_dim)
        self.lin2 = init.linear(config.hidden_dim, config.dim)
        self.activation = config.activation
        self.dropout_rate = config.dropout

    def __call__(self, x: Array, key: Array | None) -> Array:
        inner = activation(self.activation)(self.lin1(x))
        return dropout(self.lin2(inner), self.dropout_rate, key)


class Layer(nnx.Module):
    def __init__(self, config: DistilBertConfig, init: Initializer):
        self.attention = Attention(config, init)
        self.sa_layer_norm = init.layer_norm(config.dim, _EPSILON)
        self.ffn = FeedForward(config, init)
        self.output_layer_norm = init.layer_norm(config.dim, _EPSILON)

    def __call__(self, x: Array, bias: Array, key: Array | None) -> Array:
        first, second = split_key(key, 2)
        x = self.sa_layer_norm(self.attention(x, bias, first) + x)
        return self.output_layer_norm(self.ffn(x, second) + x)


class Transformer(nnx.Module):
    def __init__(self, config: DistilBertConfig, init: Initializer):
        self.layer = nnx.List([Layer(config, init) for _ in range(config.n_layers)])


class DistilBert(nnx.Module):
    def __init__(self, config: DistilBertConfig, init: Initializer):
        self.embeddings = Embeddings(config, init)
        self.transformer = Transformer(config, init)

    @property
    def layers(self) -> nnx.List:
        return self.transformer.layer


class DistilBertClassifier(EncoderModel):
    """Classes of a sequence or a pair, or one number of it, from the first token.

    Args:
        config: the shape of the model; `num_labels` 1 is regression.
        key: where initial tensors come from; a loaded checkpoint then replaces them.
    """

    prefix = "distilbert"

    def __init__(self, config: DistilBertConfig, key: Array):
        init = Initializer(key, config.initializer_range)
        self.distilbert = DistilBert(config, init)
        self.pre_classifier = init.linear(config.dim, config.dim)
        self.classifier = init.linear(config.dim, config.num_labels)
        self.num_labels = config.num_labels
        self.dropout_rate = config.seq_classif_dropout
        self.positions = config.max_position_embeddings

    def head(self, x: Array, key: Array | None) -> Array:
        pooled = jax.nn.relu(self.pre_classifier(x[:, 0]))
        return self.classifier(dropout(pooled, self.dropout_rate, key))


class DistilBertSpans(EncoderModel):
    """Start and end of the answer to a question: logits (batch, length, 2) over the tokens.

    Args:
        config: the shape of the model; its `num_labels` says nothing here.
        key: where initial tensors come from; a loaded checkpoint then replaces them.
    """

    prefix = "distilbert"

    def __init__(self, config: DistilBertConfig, key: Array):
        init = Initializer(key, config.initializer_range)
        self.distilbert = DistilBert(config, init)
        self.qa_outputs = init.linear(config.dim, 2)
        self.dropout_rate = config.qa_dropout
        self.positions = config.max_position_embeddings

    def head(self, x: Array, key: Array | None) -> Array:
        return self.qa_outputs(dropout(x, self.dropout_rate, key))
