"""Compress a decoder without training, block by block, from disk to disk.

Only one block is in memory at a time, with the states of the calibration text: a model may be
larger than memory. Each matrix is cut by the closed form that its weighting has, and what follows
sees the states of the blocks compressed before it, so that it is fitted to what it will be given.
Every finished block is kept on disk, so that a walk that was stopped goes on where it was.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from safetensors.numpy import save_file

from lpaf_jax.compress.states import States
from lpaf_jax.errors import LpafError
from lpaf_jax.files import atomic_write, read_json, write_json
from lpaf_jax.linalg import LowRank, allocate_ranks, metric_svd
from lpaf_jax.linalg.arithmetic import ratio
from lpaf_jax.linalg.scaling import exponent, from_unit, shift, to_unit
from lpaf_jax.models import DecoderOnDisk, LowRankLinear, layer_at, replace_layer
from lpaf_jax.models.functional import parameters
from lpaf_jax.models.names import file_name
from lpaf_jax.models.tensors import read_file

Weighting = Literal["activations", "fisher", "none"]
RankRule = Literal["uniform", "allocated"]


class Plan(NamedTuple):
    """How a model is cut.

    Attributes:
        share: of the numbers in the compressible matrices that is kept, in (0, 1).
        weighting: "activations" takes `L = E[x xᵀ]` over the calibration text as the metric of a
            matrix, so that its outputs change least; "fisher" a diagonal, `rows`; "none" is SVD.
        ranks: "uniform" keeps the same share of every matrix, `k = ⌊p m n / (m + n)⌋`; "allocated"
            shares the same budget out where it keeps most of the outputs' energy, each matrix's
            taken as 1.
        rows: importance of each input of a matrix, (m,), by path of the layer, for "fisher".
    """

    share: float
    weighting: Weighting = "activations"
    ranks: RankRule = "uniform"
    rows: Mapping[str, np.ndarray] | None = None


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

    def ranks(self) -> dict[str, int] | None:
        """The rank of every matrix, if they were chosen already."""
        path = self._folder / "ranks.json"
        return read_json(path) if path.is_file() else None

    def keep_ranks(self, ranks: Mapping[str, int]) -> None:
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
    each matrix one SVD and for each distinct input an eigendecomposition. "allocated" walks the
    model twice. Memory: a block in float32, the moments of its inputs, the states of all texts
    (texts × length × hidden × 4 bytes, twice those of a held-out text), the token embeddings.

    Source: Wang et al., "SVD-LLM: truncation-aware singular value decomposition for large language
    model compression" (2024), for the metric and the order of the blocks. There the metric is taken
    apart by Cholesky, here by eigenvalues with a floor, which no singular one breaks. Hsu et al.,
    "Language model compression with weighted low-rank factorization" (2022), for "fisher".
    """
    for text in (tokens, held_out):
        if text is not None and text.shape[1] > source.positions:
            raise LpafError(
                f"texts of {text.shape[1]} tokens are more than the {source.positions} positions "
                f"of {source.folder}; give a smaller length"
            )
    ranks = store.ranks()
    if ranks is None:
        ranks = _ranks(source, tokens, plan, say)
        store.keep_ranks(ranks)
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
            found = _cut_block(source, block, index, calibration, ranks, plan)
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


def _ranks(
    source: DecoderOnDisk, tokens: np.ndarray, plan: Plan, say: Callable[[str], None]
) -> dict[str, int]:
    """The rank of every matrix, by path of its layer."""
    shapes = source.matrices()
    if plan.ranks == "uniform":
        return {path: max(1, int(plan.share * m * n / (m + n))) for path, (m, n) in shapes.items()}
    spectra: dict[str, np.ndarray] = {}
    states = States(source.embedder(), tokens)
    for index in range(source.blocks):
        block, prefix = source.block(index), source.prefix(index)
        for place, moment in states.moments(block, _places(source, prefix)).items():
            path = f"{prefix}.{place}"
            w = layer_at(block, place).kernel[...]
            s = np.asarray(_spectrum(w, _metric(plan, path, moment)))
            s = np.ldexp(s, -np.frexp(s[0])[1])  # near 1, that no square leaves float32
            spectra[path] = s / max(float(np.linalg.norm(s)), 1e-30)
        states.advance(block)
        say(f"block {index + 1} of {source.blocks}: spectra, to share out the ranks by")
    try:
        return _allocated(spectra, shapes, plan.share)
    except ValueError as error:
        raise LpafError(f"{plan.share:.2%} cannot be kept of {source.folder}: {error}") from None


def _allocated(
    spectra: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, int]], share: float
) -> dict[str, int]:
    """Ranks by `allocate_ranks`; a matrix that factors would not make smaller stays dense.

    What that saves goes to the others, until no further matrix stays dense.
    """
    ranks: dict[str, int] = {}
    budget = int(share * sum(m * n for m, n in shapes.values()))
    while len(ranks) < len(shapes):
        rest = [path for path in shapes if path not in ranks]
        found = allocate_ranks([spectra[p] for p in rest], [shapes[p] for p in rest], budget)
        chosen = dict(zip(rest, found, strict=True))
        dense = [p for p in rest if chosen[p] * sum(shapes[p]) >= math.prod(shapes[p])]
        if not dense:
            return ranks | chosen
        ranks |= {path: min(shapes[path]) for path in dense}
        budget -= sum(math.prod(shapes[path]) for path in dense)
    return ranks


def _places(source: DecoderOnDisk, prefix: str) -> list[str]:
    """Where the compressible layers lie in the block at `prefix`."""
    start = f"{prefix}."
    return [path.removeprefix(start) for path in source.matrices() if path.startswith(start)]


def _cut_block(
    source: DecoderOnDisk,
    block: nnx.Module,
    index: int,
    states: "States",
    ranks: Mapping[str, int],
    plan: Plan,
) -> list[Cut]:
    """Put factors, as they will be stored, in the place of the layers of `block`."""
    prefix = source.prefix(index)
    cuts = []
    for place, moment in states.moments(block, _places(source, prefix)).items():
        path = f"{prefix}.{place}"
        layer, rank = layer_at(block, place), ranks[path]
        w = layer.kernel[...]
        m, n = w.shape
        if rank * (m + n) >= m * n:
            cuts.append(Cut(path, (m, n), None, 0.0))
            continue
        if not jnp.isfinite(moment).all():
            raise LpafError(f"{path}: what goes into it is not finite; the model itself overflows")
        factors = metric_svd(w, rank, left=_metric(plan, path, moment))
        narrow = source.stored_dtype(f"{path}.kernel")
        a, b = (x.astype(narrow).astype(jnp.float32) for x in factors)
        if not (jnp.isfinite(a).all() and jnp.isfinite(b).all()):
            raise LpafError(f"{path}: its factors are not finite as {narrow}, the file's dtype")
        _replace(block, place, LowRank(a, b))
        cuts.append(Cut(path, (m, n), rank, float(_error(w, a, b, moment))))
    return cuts


def _put_factors(
    block: nnx.Module, prefix: str, tensors: Mapping[str, np.ndarray], cuts: list[Cut]
) -> None:
    for cut in cuts:
        if cut.rank is not None:
            names = {f"{cut.path}.{leaf}": leaf for leaf in ("a", "b")}
            stored = (tensors[file_name(path, names)] for path in names)
            a, b = (jnp.asarray(x.T, jnp.float32) for x in stored)
            _replace(block, cut.path.removeprefix(f"{prefix}."), LowRank(a, b))


def _replace(block: nnx.Module, place: str, factors: LowRank) -> None:
    bias = layer_at(block, place).bias
    replace_layer(block, place, LowRankLinear(factors, None if bias is None else bias[...]))


def _tensors(source: DecoderOnDisk, block: nnx.Module, prefix: str) -> dict[str, np.ndarray]:
    """The parameters of a block by their names in a file, as they are to be stored."""
    params, found = parameters(block), {}
    for path, value in params.items():
        full = f"{prefix}.{path}"
        if full in source.shapes:
            stored = source.stored(full)
        else:
            narrow = source.stored_dtype(f"{full.rpartition('.')[0]}.kernel")
            stored = np.asarray(value).T.astype(narrow)
        # safetensors writes the memory of an array as it lies: a transposed view is scrambled.
        found[f"{prefix}.{file_name(path, params)}"] = np.ascontiguousarray(stored)
    return found


def _metric(plan: Plan, path: str, moment: Array) -> Array | None:
    if plan.weighting == "activations":
        return moment
    if plan.weighting == "none":
        return None
    if plan.rows is None or path not in plan.rows:
        raise ValueError(f"no importance of the rows of {path}, which 'fisher' needs")
    return jnp.asarray(plan.rows[path])


@jax.jit
def _spectrum(w: Array, metric: Array | None) -> Array:
    """Singular values of `L^{1/2} W`, (m, n), in falling order.

    They are the roots of the eigenvalues of its Gram matrix, that of the smaller side. The small
    ones are rounding in float32; those hold no energy that could be worth a rank.

    Cost: with k = min(m, n), 4/3 k³ FLOP for the eigenvalues and about 2 m n (m + k) for products;
    where m < n and L is a matrix, 9 m³ for its eigendecomposition. Beside W and L it holds their
    product, and two matrices of (k, k).
    """
    m, n = w.shape
    unit = exponent(w)
    w = to_unit(w, unit)
    if metric is not None:
        of_metric = exponent(metric)
        metric, unit = to_unit(metric, of_metric), unit + (of_metric >> 1)
    if metric is not None and metric.ndim == 2 and m >= n:
        gram = w.T @ (metric @ w)
    else:
        rooted = _rooted(w, metric)
        gram = rooted @ rooted.T if m < n else rooted.T @ rooted
    return from_unit(jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[::-1], 0)), unit)


def _rooted(w: Array, metric: Array | None) -> Array:
    """`T W` with `TᵀT = L`: its singular values are those of `L^{1/2} W`."""
    if metric is None:
        return w
    if metric.ndim == 1:
        return jnp.sqrt(metric)[:, None] * w
    values, vectors = jnp.linalg.eigh(metric)
    return jnp.sqrt(jnp.maximum(values, 0))[:, None] * (vectors.T @ w)


@jax.jit
def _error(w: Array, a: Array, b: Array, moment: Array) -> Array:
    unit = exponent(w)
    w, moment = to_unit(w, unit), to_unit(moment, exponent(moment))
    lost = w - shift(a, -unit) @ b
    return ratio(jnp.vdot(lost, moment @ lost), jnp.vdot(w, moment @ w))
