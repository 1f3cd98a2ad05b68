"""GPT-2 (Radford et al., 2019), with a head for the next token or for classes.

Attribute names are those of the tensors in a Hugging Face checkpoint, `transformer.h.0.attn.c_attn`
for one. The linear layers of the blocks are stored there as (in, out), as kernels are here.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.configs import plain_values
from lpaf_jax.models.decoder import FULL, Classifier, Context, LanguageModel, attend, visible
from lpaf_jax.models.initial import Initializer, split_key
from lpaf_jax.models.layers import activation, dropout

# As the `attribute_map` of transformers has them.
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


@dataclass(frozen=True)
class Gpt2Config:
    """The fields of a Hugging Face `config.json` that the computation depends on."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    num_labels: int = 2
    initializer_range: float = 0.02

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Gpt2Config":
        """Read a parsed `config.json`; fields that it has not are those of the smallest GPT-2.

        Raises:
            LpafError: it names a variant of GPT-2 that is not built here.
        """
        values = plain_values(values, _ALIASES)
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        if values.get("add_cross_attention"):
            raise LpafError("config.json: add_cross_attention is set, which is not supported")
        config = cls(**known)
        activation(config.activation_function)
        if config.n_embd % config.n_head:
            raise LpafError("config.json: n_embd is not a multiple of n_head")
        return config


class Attention(nnx.Module):
    def __init__(self, config: Gpt2Config, init: Initializer, layer_index: int):
        hidden = config.n_embd
        self.c_attn = init.linear(hidden, 3 * hidden)
        self.c_proj = init.linear(hidden, hidden)
        self.heads = config.n_head
        self.scale = (hidden // self.heads) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer_index + 1
        self.dropout_rate = config.attn_pdrop

    def __call__(self, x: Array, context: Context, key: Array | None) -> Array:
        q, k, v = (
            y.reshape(*y.shape[:2], self.heads, -1) for y in jnp.split(self.c_attn(x), 3, axis=-1)
        )
        if context.past is not None:
            k, v = context.past.extend(k, v)
        seen = context.seen[FULL]
        y = attend(q, k, v, seen, scale=self.scale, rate=self.dropout_rate, key=key)
        return self.c_proj(y)


class FeedForward(nnx.Module):
    def __init__(self, config: Gpt2Config, init: Initializer):
        inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.c_fc = init.linear(config.n_embd, inner)
        self.c_proj = init.linear(inner, config.n_embd)
        self.activation = config.activation_function

    def __call__(self, x: Array) -> Array:
        return self.c_proj(activation(self.activation)(self.c_fc(x)))


class Gpt2Block(nnx.Module):
    """One layer.

    Args:
        config: the shape of the model.
        init: draws its tensors.
        layer_index: its place among the layers, by which some configs scale attention
            (`scale_attn_by_inverse_layer_idx`).
    """

    def __init__(self, config: Gpt2Config, init: Initializer, layer_index: int):
        self.ln_1 = init.layer_norm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, init, layer_index)
        self.ln_2 = init.layer_norm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = FeedForward(config, init)
        self.dropout_rate = config.resid_pdrop

    def __call__(self, x: Array, context: Context, key: Array | None = None) -> Array:
        keys = split_key(key, 3)
        y = self.attn(self.ln_1(x), context, keys[0])
        x = x + dropout(y, self.dropout_rate, keys[1])
        return x + dropout(self.mlp(self.ln_2(x)), self.dropout_rate, keys[2])


class Gpt2(nnx.Module):
    """The body (see `decoder.Body`)."""

    def __init__(self, config: Gpt2Config, init: Initializer):
        self.wte = init.embedding(config.vocab_size, config.n_embd)
        self.wpe = init.embedding(config.n_positions, config.n_embd)
        self.h = nnx.List([Gpt2Block(config, init, i) for i in range(config.n_layer)])
        self.ln_f = init.layer_norm(config.n_embd, config.layer_norm_epsilon)
        self.dropout_rate = config.embd_pdrop

    @property
    def blocks(self) -> nnx.List[Gpt2Block]:
        return self.h

    @property
    def embeddings(self) -> nnx.Module:
        return self.wte

    @property
    def positions(self) -> int:
        return int(self.wpe.weight.shape[0])

    def embed(
        self, input_ids: Array, position_ids: Array | None = None, key: Array | None = None
    ) -> Array:
        # JAX would clamp an index beyond the table, and every further token sit at the last place.
        length = input_ids.shape[-1]
        if length > self.positions:
            raise LpafError(f"{length} tokens exceed the {self.positions} positions of the model")
        places = jnp.arange(length) if position_ids is None else position_ids
        return dropout(self.wte(input_ids) + self.wpe(places), self.dropout_rate, key)

    def context(self, attention_mask: Array, position_ids: Array | None = None) -> Context:
        return Context({FULL: visible(attention_mask)})

    def finish(self, x: Array) -> Array:
        return self.ln_f(x)

    @property
    def past_shape(self) -> tuple[int, int]:
        heads = self.h[0].attn.heads
        return heads, self.ln_f.weight.shape[0] // heads


class Gpt2LanguageModel(LanguageModel):
    """GPT-2 that tells the next token. Arguments as of `Decoder`."""

    prefix, body_class = "transformer", Gpt2


class Gpt2Classifier(Classifier):
    """GPT-2 that classifies a text by its last token. Arguments as of `Decoder`."""

    prefix, body_class = "transformer", Gpt2
