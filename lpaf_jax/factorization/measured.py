"""Spectra in units of what cutting one matrix alone does to the model's answers."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.checkpoints import DecoderOnDisk
from lpaf_jax.core.progress import Countdown, Told, untold
from lpaf_jax.factorization.states import States
from lpaf_jax.importance import Subject
from lpaf_jax.models import layer_at
from lpaf_jax.models.functional import Batch, Params, as_function, parameters
from lpaf_jax.solvers import Solution

_BATCHES = 10
# No matrix counts for less than this share of the median: below it a rise is rounding.
_LEAST = 1e-3


class Changed(NamedTuple):
    """A layer with its matrix cut.

    Attributes:
        kernel: the product of its factors, or the matrix without the channels that are gone.
        bias: what is added to its bias; None where nothing is.
    """

    kernel: Array
    bias: Array | None = None


def scaled(
    spectra: Mapping[str, np.ndarray], ranks: Mapping[str, int], seen: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """`c_p s_p`, so that `½ c_p² Σ_{j>k} s_pj²` is the divergence seen when matrix p is cut to k.

    A spectrum in units of the loss takes the model to be quadratic in each output and the inputs
    to have nothing to do with the gradients. Both are off by a factor that differs from matrix to
    matrix, and here it is measured.

    Args:
        spectra: singular values by path, in units of the loss.
        ranks: what each matrix was cut to. seen: the divergence with it alone cut. Matrices that
            are not among them take the median factor.
    """
    squared = {}
    for path, divergence in seen.items():
        expected = 0.5 * float(np.sum(np.square(spectra[path][ranks[path] :])))
        if expected > 0:
            squared[path] = divergence / expected
    usual = median(squared.values()) if squared else 1.0
    if not usual > 0:
        return dict(spectra)
    factors = {path: max(squared.get(path, usual), _LEAST * usual) for path in spectra}
    return {path: np.sqrt(factors[path]) * s for path, s in spectra.items()}


def measured_spectra(
    subject: Subject,
    spectra: Mapping[str, np.ndarray],
    cut: Mapping[str, Solution],
    told: Told = untold,
) -> dict[str, np.ndarray]:
    """The spectra scaled by what each cut alone does to a model in memory; see `scaled`.

    Args:
        subject: with `divergence`; of its data some ten batches are read.
        spectra: singular values by kernel path, in units of the loss.
        cut: the solution of each matrix alone, without those that stay dense.
        told: how many matrices are measured.

    Cost: a forward pass over those batches for each matrix.
    """
    model, divergence = subject.model, subject.divergence
    assert divergence is not None
    forward, params = as_function(model), parameters(model)

    @jax.jit
    def answers(params: Params, batch: Batch) -> Any:
        return forward(params, {}, batch)

    @jax.jit
    def moved(params: Params, before: Any, batch: Batch) -> Array:
        return divergence(before, forward(params, {}, batch), batch)

    batches = [dict(batch) for batch in subject.batches(_BATCHES)]
    before = [answers(params, batch) for batch in batches]
    seen = {}
    told("matrices measured", 0, len(cut))
    for done, (path, solution) in enumerate(cut.items(), 1):
        changed = params | _cut(params, path, solution)
        each = [
            float(moved(changed, given, batch))
            for given, batch in zip(before, batches, strict=True)
        ]
        seen[path] = float(np.mean(each))
        told("matrices measured", done, len(cut))
    return scaled(spectra, {path: each.factors.rank for path, each in cut.items()}, seen)


def _cut(params: Params, path: str, solution: Solution) -> Params:
    found = {path: solution.factors.dense()}
    if solution.bias is not None:
        place = path.removesuffix("kernel") + "bias"
        found[place] = params[place] + solution.bias
    return found


def divergences(
    source: DecoderOnDisk,
    tokens: np.ndarray,
    cuts: Callable[[int], Iterable[tuple[str, Changed]]],
    say: Callable[[str], None],
    told: Told = untold,
) -> dict[str, float]:
    """`1/T Σ_t KL(p_t ‖ q_t)` of the next token, q from the decoder with one matrix alone cut.

    All the models that differ in one matrix walk through the blocks together: up to a block they
    are the dense one, and each sets out from it where its matrix is.

    Args:
        source: the dense model, on disk.
        tokens: (texts, length).
        cuts: of the matrices in a block, by path, one after the other.
        say: is told of every block, and of every text at last.
        told: how far each of the two walks is.

    Cost: on average half a forward pass for each matrix, and the head of the model; the states of
    all of them, `4 · texts · length · hidden` bytes each, and a block are in memory.

    Source: LEMS (ICML 2026), which calibrates the errors of its factors by the divergence of one.
    """
    dense = States.of(source.embedder(), tokens)
    walking: dict[str, States] = {}
    countdown = Countdown("blocks, one matrix cut", source.blocks, told)
    for index in range(source.blocks):
        block, prefix = source.block(index), f"{source.prefix(index)}."
        for states in walking.values():
            states.advance(block)
        for path, changed in cuts(index):
            states = States(dense.x.copy(), dense.context)
            with_cut = _with_cut(block, path.removeprefix(prefix), changed)
            states.advance(with_cut)
            walking[path] = states
        dense.advance(block)
        done = index + 1
        # There are more of them after every block.
        left = countdown.left(done, (done / source.blocks) ** 2)
        say(f"block {index + 1} of {source.blocks}: predictions with one matrix factorized{left}")
    graphdef, state = nnx.split(source.ending())
    total = dict.fromkeys(walking, 0.0)
    countdown = Countdown("texts compared", len(tokens), told)
    for i in range(len(tokens)):  # one by one: vocabularies are large
        expected = _log_probabilities(graphdef, state, dense.x[i])
        for path, states in walking.items():
            total[path] += float(_divergence(graphdef, state, states.x[i], expected))
        left = countdown.left(i + 1)
        say(
            f"text {i + 1} of {len(tokens)}: distance of the predictions from the dense "
            f"model's{left}"
        )
    return {path: found / tokens.size for path, found in total.items()}


def _with_cut(block: nnx.Module, place: str, changed: Changed) -> nnx.Module:
    """The block with another matrix in the place of one: of the same graph."""
    fresh: nnx.Module = nnx.merge(*nnx.split(block))
    layer = layer_at(fresh, place)
    layer.kernel = nnx.Param(changed.kernel)
    if changed.bias is not None:
        layer.bias = nnx.Param(layer.bias[...] + changed.bias)
    return fresh


@partial(jax.jit, static_argnums=0)
def _log_probabilities(graphdef: Any, state: Any, x: Array) -> Array:
    ending: Any = nnx.merge(graphdef, state)
    return jax.nn.log_softmax(ending.head(ending.body.finish(x[None]))[0])


@partial(jax.jit, static_argnums=0)
def _divergence(graphdef: Any, state: Any, x: Array, expected: Array) -> Array:
    """`Σ_t KL(p_t ‖ q_t)` of a text, p known by its logarithms."""
    found = _log_probabilities(graphdef, state, x)
    return jnp.sum(jnp.exp(expected) * (expected - found))
