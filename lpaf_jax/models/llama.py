"""Llama (Touvron et al., 2023), and Mistral, Qwen2 and Qwen3, which differ by their config.

Attribute names are those of the tensors in a Hugging Face checkpoint:
`model.layers.0.self_attn.q_proj`.

| model_type | biases | norms of a head | sliding window |
|---|---|---|---|
| llama | `attention_bias` (q, k, v, o), `mlp_bias` | | |
| mistral | | | all layers, if `sliding_window` |
| qwen2 | q, k, v | | `layer_types`, or from layer `max_window_layers` on |
| qwen3 | `attention_bias` (q, k, v, o) | q, k | as qwen2 |
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.configs import plain_values
from lpaf_jax.models.decoder import (
    FULL,
    SLIDING,
    Classifier,
    Context,
    LanguageModel,
    attend,
    visible,
)
from lpaf_jax.models.initial import Initializer
from lpaf_jax.models.layers import activation
from lpaf_jax.models.rotary import Rotary, rotate

# What `transformers` takes where a config.json says nothing, and differs from one to the other.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "head_dim": 128,
    },
}


@dataclass(frozen=True)
class LlamaConfig:
    """What the computation depends on; names are those of a Hugging Face `config.json`, if any.

    Attributes:
        rotary: the rotary embeddings.
        layer_types: the kind of each layer, `FULL` or `SLIDING`.
        sliding_window: how many places a layer of the second kind sees.
        qkv_bias: whether queries, keys and values have biases.
        o_bias: whether what attention gives has one.
        head_norms: whether queries and keys are normalised, head by head.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rotary: Rotary
    layer_types: tuple[str, ...]
    sliding_window: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    num_labels: int = 2
    initializer_range: float = 0.02

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "LlamaConfig":
        """Read a parsed `config.json` of any `model_type` in the table above.

        Raises:
            LpafError: a field is missing, or names a variant that is not built here.
        """
        kind = str(values.get("model_type")).removeprefix("lpaf_")
        if kind not in _DEFAULTS:
            raise LpafError(
                f"config.json: model_type {kind!r} is not one of {', '.join(_DEFAULTS)}"
            )
        values = plain_values({**_DEFAULTS[kind], **values})
        attention_bias = kind in ("llama", "qwen3") and values.get("attention_bias", False)
        try:
            heads, hidden = values["num_attention_heads"], values["hidden_size"]
            values["num_key_value_heads"] = values.get("num_key_value_heads") or heads
            values["head_dim"] = values.get("head_dim") or hidden // heads
            rotary = Rotary.from_json(values, values["head_dim"], values["max_position_embeddings"])
            derived = {
                "rotary": rotary,
                "layer_types": _layer_types(kind, values),
                "qkv_bias": attention_bias or kind == "qwen2",
                "o_bias": attention_bias,
                "mlp_bias": kind == "llama" and values.get("mlp_bias", False),
                "head_norms": kind == "qwen3",
            }
            known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
            config = cls(**{**known, **derived})
        except KeyError as error:
            raise LpafError(f"config.json has no {error.args[0]}") from None
        except TypeError as error:
            raise LpafError(f"config.json is not a Llama configuration: {error}") from None
        activation(config.hidden_act)
        if config.num_attention_heads % config.num_key_value_heads:
            raise LpafError(
                "config.json: num_attention_heads is not a multiple of num_key_value_heads"
            )
        if config.head_dim % 2:
            raise LpafError(
                f"config.json: head_dim {config.head_dim} is odd, but rotation needs pairs"
            )
        return config


def _layer_types(kind: str, values: dict[str, Any]) -> tuple[str, ...]:
    layers, window = values["num_hidden_layers"], values.get("sliding_window")
    if kind == "llama":
        return (FULL,) * layers
    if kind == "mistral":
        return (FULL if window is None else SLIDING,) * layers
    window = window if values.get("use_sliding_window") else None
    types = values.get("layer_types")
    if types is None:
        first = layers if window is None else values.get("max_window_layers", 28)
        types = [SLIDING if i >= first else FULL for i in range(layers)]
    for name in types:
        if name not in (FULL, SLIDING):
            raise LpafError(f"config.json: layers of the type {name!r} are not supported")
    if len(types) != layers:
        raise LpafError(f"config.json: {len(types)} layer_types for {layers} layers")
    if window is None and SLIDING in types:
        raise LpafError(
            "config.json: layer_types has sliding windows, but no sliding window is in use"
        )
    return tuple(types)


class Attention(nnx.Module):
    def __init__(self, config: LlamaConfig, init: Initializer):
        hidden, self.head_dim = config.hidden_size, config.head_dim
        inner = config.num_attention_heads * self.head_dim
        shared = config.num_key_value_heads * self.head_dim
        self.q_proj = init.linear(hidden, inner, bias=config.qkv_bias)
        self.k_proj = init.linear(hidden, shared, bias=config.qkv_bias)
        self.v_proj = init.linear(hidden, shared, bias=config.qkv_bias)
        self.o_proj = init.linear(inner, hidden, bias=config.o_bias)
        norms = config.head_norms
        self.q_norm = init.rms_norm(self.head_dim, config.rms_norm_eps) if norms else None
        self.k_norm = init.rms_norm(self.head_dim, config.rms_norm_eps) if norms else None
        self.dropout_rate = config.attention_dropout

    def __call__(self, x: Array, context: Context, seen: Array, key: Array | None) -> Array:
        q, k, v = (
            layer(x).reshape(*x.shape[:2], -1, self.head_dim)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *context.turns), rotate(k, *context.turns)
        if context.past is not None:
            k, v = context.past.extend(k, v)
        y = attend(q, k, v, seen, scale=self.head_dim**-0.5, rate=self.dropout_rate, key=key)
        return self.o_proj(y)


class FeedForward(nnx.Module):
    """`(act(x G) ∘ (x U)) D`.

    Source: Shazeer, "GLU variants improve transformer" (2020).
    """

    def __init__(self, config: LlamaConfig, init: Initializer):
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = init.linear(hidden, inner, bias=config.mlp_bias)
        self.up_proj = init.linear(hidden, inner, bias=config.mlp_bias)
        self.down_proj = init.linear(inner, hidden, bias=config.mlp_bias)
        self.activation = config.hidden_act

    def __call__(self, x: Array) -> Array:
        return self.down_proj(activation(self.activation)(self.gate_proj(x)) * self.up_proj(x))


class LlamaBlock(nnx.Module):
    """One layer.

    Args:
        config: the shape of the model.
        init: draws its tensors.
        layer_index: its place among the layers, which tells its kind.
    """

    def __init__(self, config: LlamaConfig, init: Initializer, layer_index: int):
        hidden, epsilon = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = init.rms_norm(hidden, epsilon)
        self.self_attn = Attention(config, init)
        self.post_attention_layernorm = init.rms_norm(hidden, epsilon)
        self.mlp = FeedForward(config, init)
        self.kind = config.layer_types[layer_index]

    def __call__(self, x: Array, context: Context, key: Array | None = None) -> Array:
        seen = context.seen[self.kind]
        x = x + self.self_attn(self.input_layernorm(x), context, seen, key)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """The body (see `decoder.Body`)."""

    def __init__(self, config: LlamaConfig, init: Initializer):
        self.embed_tokens = init.embedding(config.vocab_size, config.hidden_size)
        self.layers = nnx.List(
            [LlamaBlock(config, init, i) for i in range(len(config.layer_types))]
        )
        self.norm = init.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.config = config

    @property
    def blocks(self) -> nnx.List[LlamaBlock]:
        return self.layers

    @property
    def embeddings(self) -> nnx.Module:
        return self.embed_tokens

    @property
    def positions(self) -> int:
        return self.config.max_position_embeddings

    def embed(
        self, input_ids: Array, position_ids: Array | None = None, key: Array | None = None
    ) -> Array:
        return self.embed_tokens(input_ids)

    def context(self, attention_mask: Array, position_ids: Array | None = None) -> Context:
        windows = {FULL: None, SLIDING: self.config.sliding_window}
        kinds = sorted(set(self.config.layer_types))
        places = jnp.arange(attention_mask.shape[1])[None] if position_ids is None else position_ids
        return Context(
            {kind: visible(attention_mask, windows[kind]) for kind in kinds},
            self.config.rotary.turns(places),
        )

    def finish(self, x: Array) -> Array:
        return self.norm(x)

    @property
    def past_shape(self) -> tuple[int, int]:
        return self.config.num_key_value_heads, self.config.head_dim


class LlamaLanguageModel(LanguageModel):
    """Llama that tells the next token. Arguments as of `Decoder`."""

    prefix, body_class = "model", Llama


class LlamaClassifier(Classifier):
    """Llama that classifies a text by its last token. Arguments as of `Decoder`."""

    prefix, body_class = "model", Llama
