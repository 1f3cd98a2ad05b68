"""Texts on their way through a decoder, block by block."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.data.text import perplexity
from lpaf_jax.importance.activations import Moment, Sums, input_moments, layer_inputs, product
from lpaf_jax.models.functional import Params

# Texts that pass at a time: so many, with no more than so many tokens. Attention holds (batch,
# heads, length, length), several times where there are gradients.
_TEXTS, _TOKENS = 4, 1024
# Positions whose logits are held at a time.
_POSITIONS = 128


class States:
    """The states of some texts between two blocks.

    Attributes:
        x: (texts, length, hidden) in float32.
        context: what blocks need beside them, by the number of texts that pass at a time.
    """

    def __init__(self, x: np.ndarray, context: Mapping[int, Any]):
        self.x, self.context = x, context

    @classmethod
    def of(cls, embedder: Any, tokens: np.ndarray) -> "States":
        """The states before the first block.

        Args:
            embedder: a model that can embed (`DecoderOnDisk.embedder`).
            tokens: (texts, length) ids, no padding among them.
        """
        body = embedder.body
        x = np.concatenate([np.asarray(body.embed(ids)) for ids in parts(tokens)])
        shapes = {len(ids): ids.shape for ids in parts(tokens)}
        return cls(x, {n: body.context(jnp.ones(s, jnp.int32)) for n, s in shapes.items()})

    def advance(self, block: nnx.Module) -> None:
        """The states after `block`."""
        graphdef, state = nnx.split(block)
        for part in parts(self.x):
            part[:] = advanced(graphdef, state, part, self.context[len(part)])

    def in_order(self, block: nnx.Module, places: Sequence[str]) -> list[list[str]]:
        """The layers at `places` in the order in which `block` calls them, by equal inputs."""
        graphdef, state = nnx.split(block)
        part = next(parts(self.x))
        shared = shared_inputs(graphdef, tuple(places), state, part, self.context[len(part)])
        groups: dict[str, list[str]] = {}
        for place, first in shared.items():
            groups.setdefault(first, []).append(place)
        return list(groups.values())

    def moments(
        self,
        block: nnx.Module,
        places: Sequence[str],
        beside: "tuple[nnx.Module, States] | None" = None,
    ) -> dict[str, Moment]:
        """Moments of what goes into the layers at `places` in `block`; equal inputs share one.

        Args:
            block: that the texts are to go through next.
            places: of its layers.
            beside: where `cross` is asked for, the dense block and the states before it in the
                dense model, of the same texts.
        """
        if not places:
            return {}
        graphdef, state = nnx.split(block)
        chosen: tuple[str, ...] = tuple(places)
        total: dict[str, Sums] = {}
        crossed: dict[str, Array] = {}
        if beside is None:
            for part in parts(self.x):
                context = self.context[len(part)]
                total = _with_moments(graphdef, chosen, total, state, part, context)
        else:
            dense, states = beside
            graphdefs, weights = zip((graphdef, state), nnx.split(dense), strict=True)
            for pair in zip(parts(self.x), parts(states.x), strict=True):
                part, given = pair[0], (total, crossed)
                context = self.context[len(part)]
                total, crossed = _with_cross(graphdefs, chosen, given, weights, pair, context)
        tokens = self.x.shape[0] * self.x.shape[1]
        mean = {
            path: Moment(
                sums.second / tokens,
                sums.first / tokens,
                tokens,
                None if beside is None else crossed[path] / tokens,
            )
            for path, sums in total.items()
        }
        shared = shared_inputs(graphdef, chosen, state, part, context)
        return {place: mean[first] for place, first in shared.items()}

    def perplexity(self, ending: Any, tokens: np.ndarray) -> float:
        """That of all tokens but the first of each text (see `lpaf_jax.data.perplexity`)."""
        total = 0.0
        graphdef, state = nnx.split(ending)
        for row, ids in zip(self.x, tokens, strict=True):  # one by one: vocabularies are large
            total += float(_likelihood(graphdef, state, row[None], ids[None]))
        return perplexity(total, tokens.shape[0] * (tokens.shape[1] - 1))


def parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The texts that pass a block at a time, as views."""
    count = min(_TEXTS, max(1, _TOKENS // rows.shape[1]))
    for start in range(0, len(rows), count):
        yield rows[start : start + count]


def _recorded(
    graphdef: Any, places: tuple[str, ...], state: Any, x: Array, context: Any
) -> tuple[dict[str, Sums], dict[str, str]]:
    block: Any = nnx.merge(graphdef, state)
    counted = jnp.ones(x.shape[:2], jnp.int32)
    return input_moments(block, places, counted, lambda: block(x, context))[1:]


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _with_moments(
    graphdef: Any,
    places: tuple[str, ...],
    total: dict[str, Sums],
    state: Any,
    x: Array,
    context: Any,
) -> dict[str, Sums]:
    found, _ = _recorded(graphdef, places, state, x, context)
    return jax.tree.map(jnp.add, total, found) if total else found


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _with_cross(
    graphdefs: tuple[Any, Any],
    places: tuple[str, ...],
    total: tuple[dict[str, Sums], Params],
    states: tuple[Any, Any],
    x: tuple[Array, Array],
    context: Any,
) -> tuple[dict[str, Sums], Params]:
    """Sums with those of some texts: of x̂ in the first block, and `Σ x̂ᵀx`, x in the second."""

    def inputs(graphdef: Any, state: Any, x: Array) -> dict[str, Array]:
        block: Any = nnx.merge(graphdef, state)
        return layer_inputs(block, places, lambda: block(x, context))[1]

    given, wanted = map(inputs, graphdefs, states, x)
    own = {path: Sums(product(x, x), jnp.sum(x, axis=(0, 1))) for path, x in given.items()}
    found = own, {path: product(x, wanted[path]) for path, x in given.items()}
    return jax.tree.map(jnp.add, total, found) if total[0] else found


def shared_inputs(
    graphdef: Any, places: tuple[str, ...], state: Any, x: Any, context: Any
) -> dict[str, str]:
    """Under which path the moment of each layer stands: names leave no compiled function."""
    names: dict[str, str] = {}

    def trace(state: Any, x: Array, context: Any) -> dict[str, Sums]:
        found, shared = _recorded(graphdef, places, state, x, context)
        names.update(shared)
        return found

    jax.eval_shape(trace, state, x, context)
    return names


@partial(jax.jit, static_argnums=0)
def advanced(graphdef: Any, state: Any, x: Array, context: Any) -> Array:
    """The states after a block."""
    after: Array = nnx.merge(graphdef, state)(x, context)
    return after


@partial(jax.jit, static_argnums=0)
def _likelihood(graphdef: Any, state: Any, x: Array, ids: Array) -> Array:
    return log_likelihood(nnx.merge(graphdef, state), x, ids)


def log_likelihood(ending: Any, x: Array, ids: Array) -> Array:
    """`Σ log p(token)` of texts after their first tokens, from the states after the last block.

    Some positions at a time, and once more where it is differentiated: vocabularies are large.
    """
    texts, length = ids.shape
    size = min(length, _POSITIONS)
    missing = -length % size
    following = jnp.pad(ids[:, 1:], ((0, 0), (0, missing + 1)))
    counted = jnp.broadcast_to(jnp.arange(length + missing) < length - 1, following.shape)
    x = jnp.pad(ending.body.finish(x), ((0, 0), (0, missing), (0, 0)))

    @jax.checkpoint
    def of_part(part: tuple[Array, Array, Array]) -> Array:
        x, wanted, counted = part
        logits = ending.head(x)
        chosen = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
        # A log-softmax of all of them would be held several times.
        return jnp.where(counted, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)

    def split(y: Array) -> Array:
        return jnp.moveaxis(y.reshape(texts, -1, size, *y.shape[2:]), 1, 0)

    found = jax.lax.map(of_part, (split(x), split(following), split(counted)))
    return jnp.sum(found)
