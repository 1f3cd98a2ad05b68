"""Compress a decoder without training, block by block, from disk to disk.

Only one block is in memory at a time, with the states of the calibration text: a model may be
larger than memory. Each matrix is cut by the closed form that its weighting has, and what follows
sees the states of the blocks compressed before it, so that it is fitted to what it will be given.
Every finished block is kept on disk, so that a walk that was stopped goes on where it was.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from safetensors.numpy import save_file

from lpaf_jax.checkpoints import DecoderOnDisk
from lpaf_jax.checkpoints.names import file_name
from lpaf_jax.checkpoints.tensors import read_file
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import atomic_write, read_json, write_json
from lpaf_jax.core.machine import one_blas_thread
from lpaf_jax.factorization.states import States
from lpaf_jax.factorization.swap import moved_bias
from lpaf_jax.importance import (
    IMPORTANCES,
    TWO_SIDED,
    Subject,
    Weighting,
    of_model,
    with_floor,
)
from lpaf_jax.linalg import LowRank
from lpaf_jax.linalg.arithmetic import ratio
from lpaf_jax.linalg.scaling import exponent, shift, to_unit
from lpaf_jax.models import LowRankLinear, layer_at, replace_layer
from lpaf_jax.models.functional import parameters
from lpaf_jax.ranks import RANK_RULES, choose_ranks, loss_spectrum
from lpaf_jax.solvers import SOLVERS, check_pair, solve_one


class Plan(NamedTuple):
    """How a model is cut.

    Attributes:
        importance, solver, ranks: names of a registered importance, solver and rank rule.
        params: share of the numbers in the compressible matrices that is kept, or `rank`.
        floor, ridge, multiple_of: see `lpaf_jax.factorization.factorize`.
        dense: gives the whole dense model and its data, in memory: for importances and rank rules
            that need gradients. It is called at most once.
    """

    importance: str = "activations"
    solver: str = "metric"
    ranks: str = "share"
    params: float | None = None
    rank: int | None = None
    floor: float = 0.0
    ridge: float = 0.0
    multiple_of: int = 1
    dense: Callable[[], Subject] | None = None


class Cut(NamedTuple):
    """What became of a matrix.

    Attributes:
        path: of its layer.
        shape: (m, n).
        rank: k; None where it stayed dense, as factors would have had more numbers.
        error: `E‖x W − x A B‖² / E‖x W‖²` over the calibration text, x as the blocks before, which
            are compressed, and the rest of its own, which is dense, leave it.
    """

    path: str
    shape: tuple[int, int]
    rank: int | None
    error: float


class Outcome(NamedTuple):
    """What `compress_decoder` found.

    Attributes:
        cuts: of all matrices, in their order.
        perplexity: of the held-out text by "dense" and "compressed" model; empty without one.
    """

    cuts: list[Cut]
    perplexity: dict[str, float]


class Store:
    """The finished blocks of a walk, on disk, and the ranks it was given.

    Args:
        folder: of this one walk; it is made when the first thing is kept.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def ranks(self) -> dict[str, int | None] | None:
        """The rank of every matrix, if they were chosen already."""
        path = self._folder / "ranks.json"
        return read_json(path) if path.is_file() else None

    def keep_ranks(self, ranks: Mapping[str, int | None]) -> None:
        write_json(self._folder / "ranks.json", ranks)

    def block(self, index: int) -> tuple[dict[str, np.ndarray], list[Cut]] | None:
        """Tensors by name and cuts of a block, if it is finished."""
        file, note = self._files(index)
        if not note.is_file():
            return None
        cuts = [Cut(path, (m, n), rank, error) for path, (m, n), rank, error in read_json(note)]
        return dict(read_file(file)), cuts

    def keep_block(self, index: int, tensors: dict[str, np.ndarray], cuts: list[Cut]) -> None:
        file, note = self._files(index)
        with atomic_write(file) as temporary:
            save_file(tensors, temporary)
        write_json(note, cuts)  # last: where it is, the tensors are whole

    def _files(self, index: int) -> tuple[Path, Path]:
        stem = self._folder / f"block-{index:05d}"
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")


@one_blas_thread()
def compress_decoder(
    source: DecoderOnDisk,
    tokens: np.ndarray,
    plan: Plan,
    store: Store,
    *,
    held_out: np.ndarray | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Cut every compressible matrix of a decoder, and keep the blocks in `store`.

    Args:
        source: the dense model.
        tokens: calibration text, (texts, length) ids without padding.
        plan: how.
        store: takes every block as it is to be stored: in the dtypes of the source, factors as
            factors. Blocks that it holds are not cut again.
        held_out: text whose perplexity is taken before and after, (texts, length).
        say: is told of every block.

    Raises:
        LpafError: a length is more than the model reads, a share that no rank can keep, or weights
            or activations that are not finite.

    Cost: two passes of the calibration text, and one of the held-out text with either model; for
    each matrix one SVD and for each distinct input an eigendecomposition. Ranks by the loss walk
    the model twice. Memory: a block in float32, the moments of its inputs, the states of all texts
    (texts × length × hidden × 4 bytes, twice those of a held-out text), the token embeddings.

    Source: Wang et al., "SVD-LLM: truncation-aware singular value decomposition for large language
    model compression" (2024), for the metric and the order of the blocks. There the metric is taken
    apart by Cholesky, here by eigenvalues with a floor, which no singular one breaks.
    """
    for text in (tokens, held_out):
        if text is not None and text.shape[1] > source.positions:
            raise LpafError(
                f"texts of {text.shape[1]} tokens are more than the {source.positions} positions "
                f"of {source.folder}; give a smaller length"
            )
    given, ranks = _of_dense(source, tokens, plan, store, say)
    embedder = source.embedder()
    calibration = States(embedder, tokens)
    before = None if held_out is None else States(embedder, held_out)
    after = None if held_out is None else States(embedder, held_out)
    del embedder
    cuts: list[Cut] = []
    for index in range(source.blocks):
        block, kept = source.block(index), store.block(index)
        if before is not None:
            before.advance(block)
        if kept is None:
            found = _cut_block(source, block, index, calibration, ranks, plan, given)
            tensors = _tensors(source, block, source.prefix(index))
            store.keep_block(index, tensors, found)
        else:
            tensors, found = kept
            _put_factors(block, source.prefix(index), tensors, found)
        cuts += found
        calibration.advance(block)
        if after is not None:
            after.advance(block)
        lost = np.mean([cut.error for cut in found])
        say(f"block {index + 1} of {source.blocks}: {lost:.1%} of the outputs' energy lost")
    perplexity = {}
    if before is not None and after is not None and held_out is not None:
        ending = source.ending()
        for name, states in (("dense", before), ("compressed", after)):
            perplexity[name] = states.perplexity(ending, held_out)
    return Outcome(cuts, perplexity)


def _of_dense(
    source: DecoderOnDisk,
    tokens: np.ndarray,
    plan: Plan,
    store: Store,
    say: Callable[[str], None],
) -> tuple[dict[str, Weighting], Mapping[str, int | None]]:
    """What is known before the first block is cut, by path of the layer: weightings, and ranks.

    The whole dense model is in memory where gradients are needed, and let go of afterwards.
    """
    importance, rule = IMPORTANCES[plan.importance], RANK_RULES[plan.ranks]
    check_pair(importance, SOLVERS[plan.solver], plan.ridge)
    shapes, known = source.matrices(), store.ranks()
    spectral = rule.needs_spectra and known is None
    subject = None
    if spectral or importance.of_model is not None:
        assert plan.dense is not None, "gradients need the dense model"
        say("gradients of the dense model, which is in memory for this")
        subject = plan.dense()
    given: dict[str, Weighting] = {path: Weighting() for path in shapes}
    if subject is not None and importance.of_model is not None:
        given = _by_layer(of_model(importance, subject))
    if known is None:
        spectra: dict[str, np.ndarray] = {}
        if subject is not None and spectral:
            right = given if importance is TWO_SIDED else _by_layer(of_model(TWO_SIDED, subject))
            subject = None
            spectra = _spectra(source, tokens, right, say)
        known = choose_ranks(
            plan.ranks,
            shapes,
            params=plan.params,
            rank=plan.rank,
            spectra=spectra,
            multiple_of=plan.multiple_of,
        )
        store.keep_ranks(known)
    return given, known


def _by_layer(found: Mapping[str, Weighting]) -> dict[str, Weighting]:
    return {path.removesuffix(".kernel"): weighting for path, weighting in found.items()}


def _spectra(
    source: DecoderOnDisk,
    tokens: np.ndarray,
    right: Mapping[str, Weighting],
    say: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """Singular values in units of the loss, from a walk through the dense model."""
    assert TWO_SIDED.of_inputs is not None
    found: dict[str, np.ndarray] = {}
    states = States(source.embedder(), tokens)
    for index in range(source.blocks):
        block, prefix = source.block(index), source.prefix(index)
        for place, moment in states.moments(block, _places(source, prefix)).items():
            path = f"{prefix}.{place}"
            weighting = TWO_SIDED.of_inputs(right[path], moment)
            found[path] = loss_spectrum(layer_at(block, place).kernel[...], weighting)
        states.advance(block)
        say(f"block {index + 1} of {source.blocks}: spectra, to share out the ranks by")
    return found


def _places(source: DecoderOnDisk, prefix: str) -> list[str]:
    """Where the compressible layers lie in the block at `prefix`."""
    start = f"{prefix}."
    return [path.removeprefix(start) for path in source.matrices() if path.startswith(start)]


def _cut_block(
    source: DecoderOnDisk,
    block: nnx.Module,
    index: int,
    states: States,
    ranks: Mapping[str, int | None],
    plan: Plan,
    given: Mapping[str, Weighting],
) -> list[Cut]:
    """Put factors, as they will be stored, in the place of the layers of `block`."""
    prefix = source.prefix(index)
    importance, solver = IMPORTANCES[plan.importance], SOLVERS[plan.solver]
    cuts = []
    for place, moment in states.moments(block, _places(source, prefix)).items():
        path = f"{prefix}.{place}"
        layer, rank = layer_at(block, place), ranks[path]
        w = layer.kernel[...]
        m, n = w.shape
        if rank is None or rank * (m + n) >= m * n:
            cuts.append(Cut(path, (m, n), None, 0.0))
            continue
        if not jnp.isfinite(moment.second).all():
            raise LpafError(f"{path}: what goes into it is not finite; the model itself overflows")
        weighting = given[path]
        if importance.of_inputs is not None:
            weighting = importance.of_inputs(weighting, moment)
        weighting = with_floor(weighting, plan.floor)
        factors, change = solve_one(solver, w, weighting, rank, plan.ridge)
        narrow = source.stored_dtype(f"{path}.kernel")
        a, b = (x.astype(narrow).astype(jnp.float32) for x in factors)
        if not (jnp.isfinite(a).all() and jnp.isfinite(b).all()):
            raise LpafError(f"{path}: its factors are not finite as {narrow}, the file's dtype")
        bias = None if layer.bias is None else layer.bias[...]
        _replace(block, place, LowRank(a, b), moved_bias(path, bias, change))
        cuts.append(Cut(path, (m, n), rank, float(output_error(w, a, b, moment.second))))
    return cuts


def _put_factors(
    block: nnx.Module, prefix: str, tensors: Mapping[str, np.ndarray], cuts: list[Cut]
) -> None:
    for cut in cuts:
        if cut.rank is not None:
            names = {f"{cut.path}.{leaf}": leaf for leaf in ("a", "b")}
            stored = (tensors[file_name(path, names)] for path in names)
            a, b = (jnp.asarray(x.T, jnp.float32) for x in stored)
            place = cut.path.removeprefix(f"{prefix}.")
            bias = tensors.get(f"{cut.path}.up.bias")
            _replace(
                block, place, LowRank(a, b), None if bias is None else jnp.asarray(bias, a.dtype)
            )


def _replace(block: nnx.Module, place: str, factors: LowRank, bias: Array | None) -> None:
    replace_layer(block, place, LowRankLinear(factors, bias))


def _tensors(source: DecoderOnDisk, block: nnx.Module, prefix: str) -> dict[str, np.ndarray]:
    """The parameters of a block by their names in a file, as they are to be stored."""
    params, found = parameters(block), {}
    for path, value in params.items():
        full = f"{prefix}.{path}"
        if full in source.shapes:
            stored = source.stored(full)
            if path.endswith(".bias"):  # which a method may have moved
                stored = np.asarray(value).astype(stored.dtype)
        else:
            narrow = source.stored_dtype(f"{full.rpartition('.')[0]}.kernel")
            stored = np.asarray(value).T.astype(narrow)
        # safetensors writes the memory of an array as it lies: a transposed view is scrambled.
        found[f"{prefix}.{file_name(path, params)}"] = np.ascontiguousarray(stored)
    return found


@jax.jit
def output_error(w: Array, a: Array, b: Array, moment: Array) -> Array:
    """`E‖x W − x A B‖² / E‖x W‖²`, of `moment` E[xᵀx]."""
    unit = exponent(w)
    w, moment = to_unit(w, unit), to_unit(moment, exponent(moment))
    lost = w - shift(a, -unit) @ b
    return ratio(jnp.vdot(lost, moment @ lost), jnp.vdot(w, moment @ w))
