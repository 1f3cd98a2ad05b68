"""The attention of a pass, for a loss that looks at it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
from jax import Array

_MAPS: ContextVar[list[Array] | None] = ContextVar("maps", default=None)


@contextmanager
def attention_maps() -> Iterator[list[Array]]:
    """`log softmax` of the scores of every layer that is called meanwhile, in order.

    Each is (batch, heads, queries, keys). They belong to the trace in which the layers are called,
    so that the block has to end within it.
    """
    found: list[Array] = []
    token = _MAPS.set(found)
    try:
        yield found
    finally:
        _MAPS.reset(token)


def note_scores(scores: Array) -> None:
    """Keep the attention of these scores, (batch, ..., queries, keys), where it is wanted."""
    found = _MAPS.get()
    if found is not None:
        whole = scores.reshape(scores.shape[0], -1, *scores.shape[-2:])
        found.append(jax.nn.log_softmax(whole, axis=-1))
