"""What BERT and its kin share: attention in both directions, a way through the layers, configs."""

import math
from abc import abstractmethod
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.initial import split_key
from lpaf_jax.models.layers import dropout
from lpaf_jax.models.maps import note_scores

Config = TypeVar("Config")


def read_config(cls: type[Config], values: dict[str, Any], family: str) -> Config:
    """The dataclass `cls` with what `values`, of `plain_values`, has of its fields.

    Raises:
        LpafError: a field is missing that has no default.
    """
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    known = {name: values[name] for name in names if name in values}
    try:
        return cls(**known)
    except TypeError as error:
        raise LpafError(f"config.json is not a {family} configuration: {error}") from None


def attend(
    q: Array, k: Array, v: Array, bias: Array, *, heads: int, rate: float, key: Array | None
) -> Array:
    """`softmax(Q Kᵀ / sqrt(d) + bias) V` of every head, d its width, all (batch, length, hidden).

    `bias` is that of `padding_bias`; `rate` and `key` are of the dropout of the weights.

    Source: Vaswani et al., "Attention is all you need" (2017).
    """
    shape, narrow = q.shape, q.dtype
    q, k, v = (y.reshape(*y.shape[:-1], heads, -1) for y in (q, k, v))
    # Softmax over narrow numbers loses the small weights.
    wide = jnp.promote_types(narrow, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
    scores = scores / math.sqrt(q.shape[-1]) + bias
    note_scores(scores)
    weights = jax.nn.softmax(scores, axis=-1)
    weights = dropout(weights.astype(narrow), rate, key)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(shape)


def padding_bias(attention_mask: Array) -> Array:
    """What keeps every query from the keys where the mask (batch, length) is 0."""
    # Minus infinity would make a row of padding alone NaN.
    floor = jnp.finfo(jnp.float32).min
    return jnp.where(attention_mask[:, None, None, :] > 0, 0.0, floor)


class EncoderModel(nnx.Module):
    """An encoder and a head on its last hidden states.

    A subclass names the attribute that holds the encoder, sets `positions`, and has `head`. The
    encoder has `embeddings(input_ids, token_type_ids, position_ids, key)` and `layers`, each a
    `layer(x, bias, key)`.
    """

    prefix: ClassVar[str]
    positions: int

    @abstractmethod
    def head(self, x: Array, key: Array | None) -> Array:
        """Logits from hidden states (batch, length, hidden)."""

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        *,
        position_ids: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        """Logits: (batch, labels) of a classifier, (batch, length, 2) of a head for spans.

        Args:
            input_ids: token ids, (batch, length).
            attention_mask: 1 for a token, 0 for padding, (batch, length); None is all 1.
            token_type_ids: segment of each token, (batch, length); None is all 0.
            position_ids: place of each token, (batch, length), as an index of the position
                embeddings; None counts as the family does.
            key: draws the dropout of a training pass; None for evaluation.

        Raises:
            LpafError: the length is beyond `positions`.
        """
        return self.with_hidden(
            input_ids, attention_mask, token_type_ids, position_ids=position_ids, key=key
        )[0]

    def with_hidden(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        *,
        position_ids: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, list[Array]]:
        """Logits, and the hidden states after the embeddings and after every layer.

        Each is (batch, length, hidden). Arguments and errors are those of a call.
        """
        # JAX would clamp an index beyond the table, and every further token sit at the last place.
        if input_ids.shape[-1] > self.positions:
            raise LpafError(
                f"{input_ids.shape[-1]} tokens exceed the {self.positions} positions of the model"
            )
        encoder = getattr(self, self.prefix)
        keys = split_key(key, len(encoder.layers) + 2)
        bias = padding_bias(jnp.ones_like(input_ids) if attention_mask is None else attention_mask)
        types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        hidden = [encoder.embeddings(input_ids, types, position_ids, keys[0])]
        for layer, layer_key in zip(encoder.layers, keys[2:], strict=True):
            hidden.append(layer(hidden[-1], bias, layer_key))
        return self.head(hidden[-1], keys[1]), hidden
