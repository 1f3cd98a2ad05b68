"""Compress a decoder without training, block by block, from disk to disk.

Only one block is in memory at a time, with the states of the calibration text: a model may be
larger than memory. Each matrix is cut by the closed form that its weighting has, and what follows
sees the states of the blocks compressed before it, so that it is fitted to what it will be given.
Every finished block is kept on disk, so that a walk that was stopped goes on where it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.checkpoints import DecoderOnDisk
from lpaf_jax.checkpoints.factored import Factored, record_of, records_of
from lpaf_jax.checkpoints.names import file_name
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.machine import one_blas_thread
from lpaf_jax.core.progress import Countdown, Told, untold
from lpaf_jax.factorization.channels import slice_layers
from lpaf_jax.factorization.dense import Known, Plan, factored_in, look_ahead, sliced_in
from lpaf_jax.factorization.states import States
from lpaf_jax.factorization.store import Cut, Store
from lpaf_jax.factorization.swap import bias_of, layer_of, moved_bias
from lpaf_jax.factorization.table import narrow_table, put_table
from lpaf_jax.factorization.tune_block import tune_block
from lpaf_jax.factors import KINDS, kind_of
from lpaf_jax.importance import IMPORTANCES, Moment, Weighting, with_floor
from lpaf_jax.linalg import sparsegpt
from lpaf_jax.linalg.arithmetic import ratio
from lpaf_jax.linalg.scaling import exponent, shift, to_unit
from lpaf_jax.models import Linear, layer_at, replace_layer
from lpaf_jax.models.functional import parameters
from lpaf_jax.solvers import SOLVERS, solve_one


class Outcome(NamedTuple):
    """What `compress_decoder` found.

    Attributes:
        cuts: of all matrices, in their order.
        perplexity: of each held-out text, by "dense" and "compressed" model.
    """

    cuts: list[Cut]
    perplexity: dict[str, dict[str, float]]


@one_blas_thread()
def compress_decoder(
    source: DecoderOnDisk,
    tokens: np.ndarray,
    plan: Plan,
    store: Store,
    *,
    held_out: Mapping[str, np.ndarray] = MappingProxyType({}),
    say: Callable[[str], None] = lambda text: None,
    told: Told = untold,
) -> Outcome:
    """Cut every compressible matrix of a decoder, and keep the blocks in `store`.

    Args:
        source: the dense model.
        tokens: calibration text, (texts, length) ids without padding.
        plan: how.
        store: takes every block as it is to be stored: in the dtypes of the source, factors as
            factors. Blocks that it holds are not cut again.
        held_out: texts whose perplexity is taken before and after, (texts, length) each, by name.
        say: is told of every block, and `told` how far the walk is.

    Raises:
        LpafError: a length is more than the model reads, a share that no rank can keep, or weights
            or activations that are not finite.

    Cost: two passes of the calibration text, and one of the held-out text with either model, and
    where the layers are held against the dense model one more of both models for each group of
    layers with one input (four in Llama) but the first; for
    each matrix one SVD and for each distinct input an eigendecomposition. Ranks by the loss, and
    the metric of two sides, first walk forward and back with at most 32 of the texts, whose states
    before every block are on disk meanwhile; ranks that are measured walk once more, with a model
    for each matrix (see `divergences`). Memory: a block in float32, the moments of its inputs, the
    states of all texts (texts × length × hidden × 4 bytes, twice those of a held-out text, and
    those of the calibration text where blocks are held against the dense ones or tuned), the token
    embeddings.

    Source: Wang et al., "SVD-LLM: truncation-aware singular value decomposition for large language
    model compression" (2024), for the metric and the order of the blocks. There the metric is taken
    apart by Cholesky, here by eigenvalues with a floor, which no singular one breaks.
    """
    for text in (tokens, *held_out.values()):
        if text.shape[1] > source.positions:
            raise LpafError(
                f"texts of {text.shape[1]} tokens exceed the {source.positions} positions of "
                f"{source.folder}; give a smaller length"
            )
    known = look_ahead(source, tokens, plan, store, say, told)
    if plan.embeddings is not None:
        narrow_table(source, tokens, plan.embeddings, plan.embeddings_as, store, say, told)
    embedder = source.embedder()
    streams = "streams" in IMPORTANCES[plan.importance].needs
    wanted = States.of(embedder, tokens) if plan.block_epochs or streams else None
    before = {name: States.of(embedder, text) for name, text in held_out.items()}
    put_table(source, embedder, store)
    calibration = States.of(embedder, tokens)
    after = {name: States.of(embedder, text) for name, text in held_out.items()}
    del embedder
    cuts: list[Cut] = []
    countdown = Countdown("blocks cut", source.blocks, told)
    for index in range(source.blocks):
        block, kept = source.block(index), store.block(index)
        for states in before.values():
            states.advance(block)
        dense = None if wanted is None else nnx.clone(block)
        tuned = ""
        if kept is None:
            beside = (
                (dense, wanted) if streams and dense is not None and wanted is not None else None
            )
            found = _cut_block(source, block, index, calibration, beside, plan, known)
            beside = None
        if wanted is not None and dense is not None:
            wanted.advance(dense)
        dense = None  # before the next one is read
        if kept is None:
            if wanted is not None and plan.block_epochs:
                tuned = _tune(source, block, index, calibration, wanted, plan)
            tensors = _tensors(source, block, source.prefix(index))
            store.keep_block(index, tensors, found)
        else:
            tensors, found = kept
        _put_products(block, source.prefix(index), tensors, found)
        cuts += found
        for states in (calibration, *after.values()):
            states.advance(block)
        lost = np.mean([cut.error for cut in found])
        # Blocks that are there take no time that would tell of the others.
        left = countdown.left(index + 1) if kept is None else ""
        say(
            f"block {index + 1} of {source.blocks}: "
            f"{'factorized' if kept is None else 'resumed'}, {lost:.1%} of the output energy "
            f"lost{tuned}{left}"
        )
    perplexity: dict[str, dict[str, float]] = {name: {} for name in held_out}
    ending = source.ending() if held_out else None
    if held_out:
        say("perplexity of the held-out text, of the dense and of the compressed model")
    judged = Countdown("perplexities taken", 2 * len(held_out), told)
    for model, of in (("dense", before), ("compressed", after)):
        for name, text in held_out.items():
            perplexity[name][model] = of[name].perplexity(ending, text)
            judged.left(sum(map(len, perplexity.values())))
        if ending is not None and source.tied:
            put_table(source, ending, store)
    return Outcome(cuts, perplexity)


def _cut_block(
    source: DecoderOnDisk,
    block: nnx.Module,
    index: int,
    states: States,
    beside: tuple[nnx.Module, States] | None,
    plan: Plan,
    known: Known,
) -> list[Cut]:
    """Put factors, as they will be stored, in the place of the layers of `block`."""
    prefix = f"{source.prefix(index)}."
    shapes, weightings = source.matrices(), known.weightings(index)
    between, paths = sliced_in(source, plan, index), factored_in(source, plan, index)
    ranked = SOLVERS[plan.solver].ranked
    ranks = {
        path.removeprefix(prefix): _rank_of(ranked(shapes[path]), known.ranks[path])
        for path in paths
    }
    # Layers that give channels are cut with the one that takes them.
    ranks |= {path.removeprefix(prefix): known.ranks[path] for path in between}
    groups = states.in_order(block, list(ranks))
    if beside is None:
        groups = [list(chain(*groups))]
    cuts: list[Cut] = []
    layers: dict[str, Any] = {}
    # What goes into those that give channels, where that says which ones go.
    before = {
        path.removeprefix(prefix): each.into[0].removeprefix(prefix)
        for path, each in between.items()
        if plan.channels_by == "norms"
    }
    for place, moments in _with_moments(block, groups, ranks, states, beside, before):
        path, rank, moment = f"{prefix}{place}", ranks[place], moments.get(place)
        its = (*between[path].into, path) if path in between else (path,)
        if rank is None or moment is None:
            cuts += [Cut(each, shapes[each], None, 0.0) for each in its]
            continue
        if not jnp.isfinite(moment.second).all():
            raise LpafError(f"{path}: the inputs are not finite; the model overflows")
        dense = {each: layer_at(block, each.removeprefix(prefix)) for each in its}
        found: Mapping[str, nnx.Module]
        if path in between:
            right, as_stored = weightings[path].right, partial(_as_stored, source)
            given = moments[before[place]] if place in before else None
            found, whole = slice_layers(dense, between[path], rank, moment, right, as_stored, given)
        else:
            weighting = weightings[path]
            cut, whole = _factorized(source, path, dense[path], weighting, moment, rank, plan)
            found = {path: cut}
        product = jnp.asarray(whole)
        lost = float(output_error(dense[path].kernel[...], product, moment.second))
        for each, layer in found.items():
            layers[each.removeprefix(prefix)] = layer
            cuts.append(Cut(each, shapes[each], record_of(layer), lost))
        # What comes after it is to be given what it makes now, by a layer of the shape it had.
        replace_layer(block, place, Linear(product, bias_of(found[path])))
    for place, layer in layers.items():
        replace_layer(block, place, layer)
    return cuts


def _factorized(
    source: DecoderOnDisk,
    path: str,
    layer: Linear,
    weighting: Weighting,
    moment: Moment,
    rank: int,
    plan: Plan,
) -> tuple[nnx.Module, np.ndarray]:
    """A layer of factors, as they will be stored, and their product."""
    importance = IMPORTANCES[plan.importance]
    if importance.of_inputs is not None:
        weighting = importance.of_inputs(weighting, moment)
    weighting, target = with_floor(weighting, plan.floor), layer.kernel[...]
    if plan.pruned_to < 1:
        target = sparsegpt(target, moment.second, plan.pruned_to)
    factors, change = solve_one(SOLVERS[plan.solver], target, weighting, rank, plan.ridge)
    narrowed = [_as_stored(source, path, x) for x in factors]
    if not all(np.isfinite(x).all() for x in narrowed):
        narrow = source.stored_dtype(f"{path}.kernel")
        raise LpafError(f"{path}: the factors are not finite in {narrow}, the file's dtype")
    bias = moved_bias(path, bias_of(layer), change)
    cut, kind = layer_of(type(factors)(*map(jnp.asarray, narrowed)), bias), kind_of(factors)
    return cut, kind.dense(dict(zip(kind.leaves, narrowed, strict=True)))


def _with_moments(
    block: nnx.Module,
    groups: Sequence[Sequence[str]],
    ranks: Mapping[str, int | None],
    states: States,
    beside: tuple[nnx.Module, States] | None,
    before: Mapping[str, str],
) -> Iterator[tuple[str, dict[str, Moment]]]:
    """The layers of a block one by one, with the moments of those that are cut.

    Those of a group are taken when it is reached. Where what a layer makes is held against the
    dense model, the groups before it are then cut: what they have mended must not be mended again.
    `before` names layers whose moments are wanted together with those of others.
    """
    for group in groups:
        asked = [place for place in group if ranks[place] is not None]
        asked += [before[place] for place in asked if place in before]
        moments = states.moments(block, asked, beside)
        for place in group:
            yield place, moments


def _as_stored(source: DecoderOnDisk, path: str, x: Any) -> np.ndarray:
    """What is left of numbers of the layer at `path` in the dtype that its file has.

    By numpy, as all that has the shape of a rank: XLA would compile it for each anew.
    """
    return np.asarray(x).astype(source.stored_dtype(f"{path}.kernel")).astype(np.float32)


def _rank_of(shape: tuple[int, int], rank: int | None) -> int | None:
    """The rank, or None where factors would have no fewer numbers than the matrix."""
    m, n = shape
    return None if rank is None or rank * (m + n) >= m * n else rank


def _tune(
    source: DecoderOnDisk,
    block: nnx.Module,
    index: int,
    given: States,
    wanted: States,
    plan: Plan,
) -> str:
    """Tune the factors of a block, and round them to what will be stored; in words, what it did."""
    epochs, lr, seed = plan.block_epochs, plan.block_lr, plan.seed + index
    before, after = tune_block(block, given, wanted, epochs=epochs, lr=lr, seed=seed)
    shapes = source.matrices()
    for place, record in records_of(block).items():
        path = f"{source.prefix(index)}.{place}"
        narrow = source.stored_dtype(f"{path}.kernel")
        for leaf in KINDS[record["kind"]].shapes(record, shapes[path]):
            factor = getattr(layer_at(block, place), leaf)
            factor.set_value(factor[...].astype(narrow).astype(jnp.float32))
    return f", output error {before:.2%}, {after:.2%} after tuning"


def _put_products(
    block: nnx.Module, prefix: str, tensors: Mapping[str, np.ndarray], cuts: list[Cut]
) -> None:
    """Put what was cut into a block, multiplied back to dense layers, as it is stored.

    All blocks are then of one shape: one of ranks of its own would be compiled anew, for seconds,
    and stay in memory, 90 MB of it for each block of SmolLM2.
    """
    for cut in cuts:
        record = cut.record
        if record is None:
            continue
        layer = Factored(KINDS[record["kind"]], record, cut.shape)
        stored = layer.read(cut.path, tensors)
        bias = stored.pop("bias", None)
        whole = None if bias is None else jnp.asarray(layer.whole_bias(bias))
        dense = Linear(jnp.asarray(layer.whole(stored)), whole)
        replace_layer(block, cut.path.removeprefix(f"{prefix}."), dense)


def _tensors(source: DecoderOnDisk, block: nnx.Module, prefix: str) -> dict[str, np.ndarray]:
    """The parameters of a block by their names in a file, as they are to be stored."""
    params, records, found = parameters(block), records_of(block), {}
    for path, value in params.items():
        full = f"{prefix}.{path}"
        if full in source.shapes:
            stored = source.stored(full)
            if path.endswith(".bias"):  # which a method may have moved
                stored = np.asarray(value).astype(stored.dtype)
        else:
            layer, _, leaf = path.rpartition(".")
            as_filed = KINDS[records[layer]["kind"]].filed(leaf, np.asarray(value))
            stored = as_filed.astype(source.stored_dtype(f"{prefix}.{layer}.kernel"))
        # safetensors writes the memory of an array as it lies: a transposed view is scrambled.
        found[f"{prefix}.{file_name(path, params)}"] = np.ascontiguousarray(stored)
    return found


@jax.jit
def output_error(w: Array, product: Array, moment: Array) -> Array:
    """`E‖x W − x V‖² / E‖x W‖²`, V the product and `moment` E[xᵀx]."""
    unit = exponent(w)
    w, moment = to_unit(w, unit), to_unit(moment, exponent(moment))
    lost = w - shift(product, -unit)
    return ratio(jnp.vdot(lost, moment @ lost), jnp.vdot(w, moment @ w))
