"""The table of token embeddings of a decoder on disk, as factors."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.checkpoints import DecoderOnDisk
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.progress import Countdown, Told, untold
from lpaf_jax.factorization.dense import some_of
from lpaf_jax.factorization.embeddings import (
    FORMS,
    factorized_table,
    put_factors,
    token_counts,
)
from lpaf_jax.factorization.states import States, parts
from lpaf_jax.factorization.store import Store
from lpaf_jax.importance.activations import product
from lpaf_jax.models import layer_at


def narrow_table(
    source: DecoderOnDisk,
    tokens: np.ndarray,
    width: float,
    form: str,
    store: Store,
    say: Callable[[str], None],
    told: Told = untold,
) -> None:
    """Keep the factors of the table in `store`, as they will be stored.

    Args:
        source: the dense model.
        tokens: calibration text: what counts is how often a token occurs in it.
        width, form: see `lpaf_jax.factorization.table_record`.
        store: does nothing where it holds them.
        say: is told of every block, and `told` how far the walk is.

    Raises:
        LpafError: see `factorized_table`; or they are not finite in the dtype of the file.

    Cost: see `factorized_table`; where the head is tied to the table, a pass of at most 32 of the
    texts through the dense model.
    """
    if store.table() is not None:
        return
    path = f"{source.table}.weight"
    embedder = source.embedder()
    looks = source.tied and FORMS[form].looks_at_head
    head = _given_to_head(source, embedder, some_of(tokens), say, told) if looks else None
    table = layer_at(embedder, source.table).weight[...]
    counts = token_counts(tokens, len(table))
    record, found = factorized_table(form, table, width, counts, head)
    narrow = source.stored_dtype(path)
    stored = {leaf: np.asarray(x).astype(narrow).astype(np.float32) for leaf, x in found.items()}
    if not all(np.isfinite(x).all() for x in stored.values()):
        raise LpafError(f"{path}: the factors are not finite in {narrow}, the file's dtype")
    store.keep_table(record, stored)


def put_table(source: DecoderOnDisk, model: nnx.Module, store: Store) -> None:
    """Put the factors that `store` holds, if any, in the place of the table of `model`."""
    found = store.table()
    if found is not None:
        record, factors = found
        put_factors(model, source.table, record, {x: jnp.asarray(v) for x, v in factors.items()})


def _given_to_head(
    source: DecoderOnDisk,
    embedder: nnx.Module,
    tokens: np.ndarray,
    say: Callable[[str], None],
    told: Told,
) -> Array:
    """E[hᵀh] of what goes into the head of the dense model."""
    states = States.of(embedder, tokens)
    ahead = Countdown("blocks forward", source.blocks, told)
    for index in range(source.blocks):
        states.advance(source.block(index))
        done = index + 1
        left = ahead.left(done)
        say(f"block {done} of {source.blocks}: forward, for the inputs of the head{left}")
    body = source.ending().body
    given = (jnp.asarray(body.finish(x)) for x in parts(states.x))
    return sum((product(h, h) for h in given), start=jnp.zeros(())) / tokens.size
