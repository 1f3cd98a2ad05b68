"""Continue a text, token after token, with the keys and values of what was read kept."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json
from lpaf_jax.data import Tokenizer, load_tokenizer
from lpaf_jax.models.decoder import Past

# Prompts are read as if they were of such lengths: each takes its own compilation.
_STEP = 64

Cache = list[tuple[Array, Array]]


class Sampling(NamedTuple):
    """How the next token is chosen from `softmax(logits / temperature)`.

    Attributes:
        temperature: 0 takes the most likely one.
        top_p: of the most likely tokens, those that together have at least this chance.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


class Generator:
    """A language model that continues texts.

    Args:
        model: a decoder with a language model's head, dense or factorized.
    """

    def __init__(self, model: Any):
        self._graphdef, self._state = nnx.split(model)
        self._groups, self._width = model.body.past_shape
        self._blocks, self._positions = len(model.body.blocks), model.positions

    def tokens(
        self, ids: np.ndarray, count: int, sampling: Sampling = GREEDY
    ) -> Iterator[np.ndarray]:
        """The next tokens one by one, (batch,) int32.

        Args:
            ids: prompts of one length, (batch, length), without padding.
            count: how many tokens follow.

        Raises:
            LpafError: prompt and continuation are longer than the model reads, or the prompt is
                empty.

        Cost: a forward pass over the prompt, and one over a single token for each that follows;
        keys and values, `8 · blocks · batch · (length + count) · groups · head_dim` bytes.
        """
        batch, length = ids.shape
        if length == 0:
            raise LpafError("the prompt is empty: give at least one token")
        if length + count > self._positions:
            raise LpafError(
                f"{length} prompt tokens and {count} new ones exceed the {self._positions} tokens "
                "that the model reads"
            )
        padded = min(-(-length // _STEP) * _STEP, self._positions)
        room = max(padded, min(-(-(length + count) // _STEP) * _STEP, self._positions))
        shape = (batch, room, self._groups, self._width)
        cache: Cache = [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(self._blocks)]
        # What stands behind the prompt is seen by nothing, and overwritten by what follows.
        given = np.pad(ids, ((0, 0), (0, padded - length))).astype(np.int32)
        key = jax.random.key(sampling.seed)
        choose = partial(_next, self._graphdef, sampling.temperature, sampling.top_p)
        found, cache = choose(self._state, cache, given, 0, length - 1, key)
        for i in range(count):
            yield np.asarray(found)
            if i + 1 < count:
                at = length + i
                found, cache = choose(self._state, cache, found[:, None], at, 0, key)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _next(
    graphdef: Any,
    temperature: float,
    top_p: float,
    state: Any,
    cache: Cache,
    ids: Array,
    at: Array,
    last: Array,
    key: Array,
) -> tuple[Array, Cache]:
    """The token after place `at + last`, from `ids` at the places from `at` on."""
    model: Any = nnx.merge(graphdef, state)
    body, (batch, length), room = model.body, ids.shape, cache[0][0].shape[1]
    places = at + jnp.arange(length)[None]
    x = body.embed(ids, places)
    whole = body.context(jnp.ones((1, room), jnp.int32))
    context = whole._replace(
        seen={
            kind: jnp.broadcast_to(
                jax.lax.dynamic_slice_in_dim(seen, at, length, 1), (batch, length, room)
            )
            for kind, seen in whole.seen.items()
        },
        turns=tuple(jax.lax.dynamic_slice_in_dim(t, at, length, 1) for t in whole.turns),
    )
    after = []
    for block, (keys, values) in zip(body.blocks, cache, strict=True):
        past = Past(keys, values, at)
        x = block(x, context._replace(past=past))
        after.append((past.keys, past.values))
    x = jax.lax.dynamic_slice_in_dim(x, last, 1, 1)
    logits = model.head(body.finish(x))[:, 0].astype(jnp.float32)
    return _chosen(logits, temperature, top_p, jax.random.fold_in(key, at + last)), after


def _chosen(logits: Array, temperature: float, top_p: float, key: Array) -> Array:
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if top_p < 1:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        chances = jax.nn.softmax(ranked, axis=-1)
        # Those that come before the rest of the chance is reached; the first one always does.
        kept = jnp.sum(jnp.cumsum(chances, axis=-1) - chances < top_p, axis=-1, keepdims=True)
        logits = jnp.where(
            logits >= jnp.take_along_axis(ranked, kept - 1, axis=-1), logits, -jnp.inf
        )
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


class Told(NamedTuple):
    """A continuation.

    Attributes:
        text: of it, without the prompt.
        prompt, tokens: how many tokens the prompt and the continuation have.
        reading, writing: seconds to the first token, and for all that follow it, compilation of
            each among them.
    """

    text: str
    prompt: int
    tokens: int
    reading: float
    writing: float


def generate(folder: Path, prompt: str, *, tokens: int = 64, sampling: Sampling = GREEDY) -> Told:
    """Continue a prompt until the model ends the text, or so many tokens are written.

    Args:
        folder: of a language model.
        prompt: a text.
        tokens: at most. sampling: how they are chosen.

    Raises:
        LpafError: the folder cannot be read or has no language model, or the prompt is too long.
    """
    tokenizer: Tokenizer = load_tokenizer(folder)
    ends = _ends(folder)
    ids = np.array(tokenizer.tokens([prompt], special=True), np.int32)
    generator = Generator(load_model(folder, head="lm"))
    begun = time.perf_counter()
    first = begun
    found: list[int] = []
    for token in generator.tokens(ids, tokens, sampling):
        first = first if found else time.perf_counter()
        if int(token[0]) in ends:
            break
        found.append(int(token[0]))
    text = tokenizer.text(found)
    ended = time.perf_counter()
    return Told(text, ids.shape[1], len(found), first - begun, ended - first)


def _ends(folder: Path) -> set[int]:
    """The tokens that end a text."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if found is not None:
            return set(found) if isinstance(found, list) else {found}
    return set()
