"""What decoders share: a walk block by block, causal attention, and the heads on top.

A forward pass is

    x = body.embed(input_ids, position_ids)
    context = body.context(attention_mask, position_ids)
    for block in body.blocks:
        x = block(x, context)
    logits = model.head(body.finish(x))

with `body = model.body`, and a pass through a whole model takes these very steps. So whoever has
not the memory for all blocks at once may take them one at a time: a block can be made alone, from
its config and its place, and `embed`, `context`, `finish` and `head` look at no block.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.models.initial import Initializer, split_key
from lpaf_jax.models.layers import dropout
from lpaf_jax.models.maps import note_scores

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers, as `layer_types` of a `config.json` has them."""


class Past:
    """Keys and values of one block, which a text that grows need not compute again.

    It lives within one pass: a block writes into it, and whoever called the block reads it.

    Args:
        keys: (batch, room, groups, head_dim). values: likewise.
        at: the place of the first token of this pass.
    """

    def __init__(self, keys: Array, values: Array, at: Array):
        self.keys, self.values, self._at = keys, values, at

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """All keys and values there is room for, with those of this pass in their places."""
        start = (0, self._at, 0, 0)
        self.keys = jax.lax.dynamic_update_slice(self.keys, k.astype(self.keys.dtype), start)
        self.values = jax.lax.dynamic_update_slice(self.values, v.astype(self.values.dtype), start)
        return self.keys, self.values


class Context(NamedTuple):
    """What all blocks of a pass need beside the states: a pytree, where there is no past.

    Attributes:
        seen: which places each place sees, (batch, length, length), queries first, by the kind of
            the layer: `FULL` or `SLIDING`, those of the two that the model has. With a past there
            are as many keys as it has room for.
        turns: cosine and sine of rotary embeddings, (batch or 1, length, pairs) each; empty where
            positions are told by the embeddings.
        past: of the block that is given the context; None for a pass over whole texts.
    """

    seen: dict[str, Array]
    turns: tuple[Array, ...] = ()
    past: Past | None = None


class Block(Protocol):
    """One layer of a decoder, made by `Class(config, init, layer_index)`."""

    def __call__(self, x: Array, context: Context, key: Array | None = None) -> Array:
        """The states after the layer, (batch, length, hidden) as before; `key` draws dropout."""
        ...


class Body(Protocol):
    """A decoder without its head."""

    @property
    def blocks(self) -> Sequence[Block]:
        """The layers in order, an `nnx.List`."""
        ...

    @property
    def embeddings(self) -> Any:
        """The token embeddings, which give a tied head its `scores`, too."""
        ...

    @property
    def positions(self) -> int:
        """The longest input, in tokens."""
        ...

    def embed(
        self, input_ids: Array, position_ids: Array | None = None, key: Array | None = None
    ) -> Array:
        """States before the first block, (batch, length, hidden).

        Raises:
            LpafError: the length is beyond a table of positions.
        """
        ...

    def context(self, attention_mask: Array, position_ids: Array | None = None) -> Context:
        """What the blocks need, for a mask of (batch, length): 1 for a token, 0 for padding."""
        ...

    def finish(self, x: Array) -> Array:
        """States as the head takes them: after the last norm."""
        ...

    @property
    def past_shape(self) -> tuple[int, int]:
        """How many groups of keys there are, and their width: see `Past`."""
        ...


class Decoder(nnx.Module):
    """A body and a head, called alike in all families.

    A subclass names the body, and the attribute that holds it.

    Args:
        config: the shape of the model.
        key: where initial tensors come from; a loaded checkpoint then replaces them.

    Attributes:
        positions: the longest input, in tokens.
    """

    prefix: ClassVar[str]
    body_class: ClassVar[type[Any]]  # made by `Class(config, init)`, a `Body`

    def __init__(self, config: Any, key: Array):
        init = Initializer(key, config.initializer_range)
        setattr(self, self.prefix, self.body_class(config, init))
        self.positions = self.body.positions
        self._add_head(config, init)

    @property
    def body(self) -> Body:
        """The part that the head stands on."""
        body: Body = getattr(self, self.prefix)
        return body

    @abstractmethod
    def _add_head(self, config: Any, init: Initializer) -> None:
        """Make what `head` applies."""

    @abstractmethod
    def head(self, x: Array) -> Array:
        """Logits of finished states: (..., hidden) to (..., classes or vocabulary)."""

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        *,
        position_ids: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        """Logits.

        Args:
            input_ids: token ids, (batch, length).
            attention_mask: 1 for a token, 0 for padding, (batch, length); None for tokens alone.
            token_type_ids: accepted for the sake of other families, and not looked at.
            position_ids: of each token, (batch, length), within `positions`; None counts from 0 at
                the left, padding counted: a text that is padded on the left needs its own.
            key: draws the dropout of a training pass; None for evaluation.

        Returns:
            (batch, length, vocabulary) of a language model, (batch, labels) of a classifier. What
            stands at a place of padding means nothing, and is finite.

        Raises:
            LpafError: the length is beyond a table of positions.
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

        Each is (batch, length, hidden). The last are those after the last norm, as in PyTorch.
        Arguments and errors are those of a call.
        """
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        body = self.body
        first, *keys = split_key(key, len(body.blocks) + 1)
        x = body.embed(input_ids, position_ids, first)
        context = body.context(mask, position_ids)
        hidden = [x]
        for block, block_key in zip(body.blocks, keys, strict=True):
            hidden.append(block(hidden[-1], context, block_key))
        hidden[-1] = body.finish(hidden[-1])
        return self.head(self._chosen(hidden[-1], input_ids, mask)), hidden

    def _chosen(self, x: Array, input_ids: Array, mask: Array) -> Array:
        return x


class LanguageModel(Decoder):
    """The next token at every place, by a head of its own or by the embeddings (tied)."""

    def _add_head(self, config: Any, init: Initializer) -> None:
        vocabulary, hidden = self.body.embeddings.weight.shape
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else init.linear(hidden, vocabulary, bias=False)

    def head(self, x: Array) -> Array:
        return self.body.embeddings.scores(x) if self.lm_head is None else self.lm_head(x)


class Classifier(Decoder):
    """Classes of a text, from the state of its last token (see `last_token`)."""

    def _add_head(self, config: Any, init: Initializer) -> None:
        hidden = self.body.embeddings.weight.shape[1]
        self.score = init.linear(hidden, config.num_labels, bias=False)
        self.num_labels, self.pad_token_id = config.num_labels, config.pad_token_id

    def head(self, x: Array) -> Array:
        return self.score(x)

    def _chosen(self, x: Array, input_ids: Array, mask: Array) -> Array:
        place = last_token(input_ids, mask, self.pad_token_id)
        return jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]


def last_token(input_ids: Array, attention_mask: Array, pad_token_id: int | None) -> Array:
    """The place of each text's last token, (batch,): the rightmost that is not `pad_token_id`.

    So do the classifiers of PyTorch, whatever the attention mask says and on whichever side the
    padding is; 0 where there is nothing but padding. They refuse more than one text where the
    config has no `pad_token_id`, and take the last place of one: the rightmost that the attention
    mask shows is taken here, which is the same for a text without padding.
    """
    token = attention_mask > 0 if pad_token_id is None else input_ids != pad_token_id
    return jnp.max(jnp.where(token, jnp.arange(input_ids.shape[1]), 0), axis=1)


def visible(attention_mask: Array, window: int | None = None) -> Array:
    """Which places each place sees: no padding, nothing to the right, and the nearest `window`.

    Args:
        attention_mask: 1 for a token, 0 for padding, (batch, length).
        window: how many are seen, the place itself among them; None for all.

    Returns:
        booleans, (batch, length, length), queries first.
    """
    place = jnp.arange(attention_mask.shape[1])
    back = place[:, None] - place
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    return near & (attention_mask[:, None, :] > 0)


def attend(
    q: Array,
    k: Array,
    v: Array,
    seen: Array,
    *,
    scale: float,
    rate: float,
    key: Array | None,
) -> Array:
    """Attention, `softmax(scale · q kᵀ) v` over the places that are seen, softmax in float32.

    Args:
        q: queries, (batch, length, heads, head_dim).
        k: keys, (batch, length, groups, head_dim): each serves heads / groups neighbouring heads.
        v: values, likewise.
        seen: (batch, length, length). Where a place sees nothing, it takes the mean of all values.
        scale: of the scores.
        rate: of the dropout of the weights.
        key: draws it; None for none.

    Returns:
        (batch, length, heads · head_dim).

    Source: Ainslie et al., "GQA: training generalized multi-query transformer models" (2023).
    """
    batch, length, _, head_dim = q.shape
    q = q.reshape(batch, length, k.shape[2], -1, head_dim)
    # Softmax over narrow numbers loses the small weights.
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bqghd,bkgd->bghqk", q, k, preferred_element_type=wide) * scale
    # Minus infinity would make a row of padding alone NaN.
    scores = jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
    note_scores(scores)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(q.dtype), rate, key)
    return jnp.einsum("bghqk,bkgd->bqghd", weights, v).reshape(batch, length, -1)
