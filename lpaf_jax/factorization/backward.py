"""Gradients of the next-token loss in a decoder on disk, block by block from its end.

A pass forward keeps the states before each block on disk, and one backward differentiates each
block alone, from what the blocks after it left: one block, its moments and the gradient of the
states are in memory, however many blocks there are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.checkpoints import DecoderOnDisk
from lpaf_jax.core.files import atomic_write
from lpaf_jax.factorization.states import States, log_likelihood, parts, shared_inputs
from lpaf_jax.importance.activations import Moment, Sums, input_moments
from lpaf_jax.importance.gradients import GradientSums, Probed
from lpaf_jax.models import layer_at, replace_layer
from lpaf_jax.models.functional import Params


class Sides(NamedTuple):
    """What is known of a layer: both are of the same texts, in the dense model.

    Attributes:
        inputs: moments of what goes into it.
        gradients: `G = 1/N Σ_n Σ_t gₙₜᵀ gₙₜ`, (n, n), of the gradients at what comes out of it; see
            `lpaf_jax.importance.gradient_moments`.
    """

    inputs: Moment
    gradients: Array


class Backward:
    """Walks a dense decoder from its last block to its first.

    Args:
        source: the model.
        tokens: (texts, length), without padding.
        folder: for the states, `4 · texts · length · hidden` bytes for each block, and the gradient
            by which a walk that was stopped goes on.
    """

    def __init__(self, source: DecoderOnDisk, tokens: np.ndarray, folder: Path):
        self._source, self._tokens, self._folder = source, tokens, folder
        self._first = States.of(source.embedder(), tokens)

    def forward(self, say: Callable[[int], None]) -> None:
        """Keep the states before each block, and the gradient at the last ones.

        Args:
            say: is told how many blocks are done.
        """
        states, last = self._first, self._source.blocks
        for index in range(last):
            self._keep(self._states(index), states.x)
            states.advance(self._source.block(index))
            say(index + 1)
        graphdef, state = nnx.split(self._source.ending())
        for x, ids in zip(
            states.x, self._tokens, strict=True
        ):  # one by one: vocabularies are large
            x[:] = _of_loss(graphdef, state, x[None], ids[None])[0]
        self._keep(self._gradient(last), states.x)

    def reached(self, index: int) -> bool:
        """Whether `block(index)` can be asked for."""
        return self._gradient(index + 1).is_file()

    def block(self, index: int, block: nnx.Module, places: Sequence[str]) -> dict[str, Sides]:
        """Both sides of the layers at `places` in a block; the one after it goes first.

        Layers with the same input have the same arrays.
        """
        graphdef, state = nnx.split(block)
        before, gradient = np.load(self._states(index)), np.load(self._gradient(index + 1))
        chosen: tuple[str, ...] = tuple(places)
        context = self._first.context
        first = next(parts(before))
        names = shared_inputs(graphdef, chosen, state, first, context[len(first)])
        sums = None
        for x, g in zip(parts(before), parts(gradient), strict=True):
            sums, g[:] = _with_sides(graphdef, chosen, sums, state, x, g, context[len(x)])
        assert sums is not None
        self._keep(self._gradient(index), gradient)
        self._gradient(index + 2).unlink(missing_ok=True)  # of the one before, whoever asks again
        tokens = self._tokens.size
        inputs = {
            path: Moment(each.second / tokens, each.first / tokens, tokens)
            for path, each in sums.inputs.items()
        }
        gradients = sums.gradients.means(len(self._tokens))
        return {path: Sides(inputs[names[path]], gradients[path]) for path in chosen}

    def _states(self, index: int) -> Path:
        return self._folder / f"states-{index:05d}.npy"

    def _gradient(self, index: int) -> Path:
        return self._folder / f"gradient-{index:05d}.npy"

    def _keep(self, path: Path, array: np.ndarray) -> None:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, array)


class _Sums(NamedTuple):
    inputs: dict[str, Sums]
    gradients: GradientSums


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _with_sides(
    graphdef: Any,
    places: tuple[str, ...],
    total: _Sums | None,
    state: Any,
    x: Array,
    gradient: Array,
    context: Any,
) -> tuple[_Sums, Array]:
    """Sums with those of some texts, and the gradient at the states before the block."""

    def run(probes: Params, x: Array) -> tuple[Array, dict[str, Sums]]:
        block: Any = nnx.merge(graphdef, state)
        for path, probe in probes.items():
            replace_layer(block, path, Probed(layer_at(block, path), probe))
        counted = jnp.ones(x.shape[:2], jnp.int32)
        return input_moments(block, places, counted, lambda: block(x, context))[:2]

    block: Any = nnx.merge(graphdef, state)
    widths = {path: layer_at(block, path).kernel.shape[1] for path in places}
    probes = {path: jnp.zeros((*x.shape[:2], n), jnp.float32) for path, n in widths.items()}
    _, back, inputs = jax.vjp(run, probes, x, has_aux=True)
    at_outputs, at_states = back(gradient)
    if total is None:
        total = _Sums(jax.tree.map(jnp.zeros_like, inputs), GradientSums.none(widths))
    added = jax.tree.map(jnp.add, total.inputs, inputs)
    return _Sums(added, total.gradients.with_gradients(at_outputs)), at_states


@partial(jax.jit, static_argnums=0)
def _of_loss(graphdef: Any, state: Any, x: Array, ids: Array) -> Array:
    """The gradient of the mean of `−log p(token)` of a text after its first token."""

    def loss(x: Array) -> Array:
        model: Any = nnx.merge(graphdef, state)
        return -log_likelihood(model, x, ids) / (ids.shape[1] - 1)

    found: Array = jax.grad(loss)(x)
    return found
