"""What is to be known of a dense decoder before its first block is cut: ranks, and gradients."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.checkpoints import DecoderOnDisk
from lpaf_jax.checkpoints.walk import Between
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.progress import Countdown, Told, untold
from lpaf_jax.data.split import evenly
from lpaf_jax.factorization.backward import Backward
from lpaf_jax.factorization.channels import Space, elimination, in_space, kept_channels
from lpaf_jax.factorization.measured import Changed, divergences, scaled
from lpaf_jax.factorization.store import Store
from lpaf_jax.importance import (
    IMPORTANCES,
    TWO_SIDED,
    Subject,
    Weighting,
    of_model,
    with_floor,
)
from lpaf_jax.importance.gradients import by_gradients
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import layer_at
from lpaf_jax.ranks import RANK_RULES, Channels, Ranks, choose_ranks, loss_spectrum
from lpaf_jax.solvers import SOLVERS, check_pair, solve_one

# Pieces of the text that gradients are taken of: on MiniLM 320 sentences say as much as 5,000.
_TEXTS = 32
# Tokens by which cuts are measured, in pieces of this length.
_MEASURED, _LENGTH = 1024, 128
# What a matrix is cut to for that, as a share of the rank at which factors are as large as it.
_SHARE = 0.1


class Plan(NamedTuple):
    """How a model is cut.

    Attributes:
        importance, solver, ranks: names of a registered importance, solver and rank rule.
        params: share of the numbers in the compressible matrices that is kept, or `rank`.
        floor, ridge, multiple_of, least: see `lpaf_jax.factorization.factorize`.
        channels: what loses channels, in the place of becoming factors: "none" of the layers, those
            of "feed-forward", or "all": the values of attention, too, where they have a matrix.
        channels_by: "loss" or "norms", which of them go: see `kept_channels`, `kept_by_norms`.
        embeddings, embeddings_as: what the table of token embeddings is cut to, and in which form:
            see `table_record`; None leaves it as it is.
        pruned_to: share of its weights that `sparsegpt` leaves of a matrix before it is factorized.
        block_epochs, block_lr, seed: see `tune_block`; 0 epochs tune nothing.
        dense: gives the whole dense model and its data, in memory: for importances that look at
            all of it at once. It is called at most once.
    """

    importance: str = "activations"
    solver: str = "metric"
    ranks: str = "share"
    params: float | None = None
    rank: int | None = None
    floor: float = 0.0
    ridge: float = 0.0
    multiple_of: int = 1
    least: float = 0.0
    channels: str = "none"
    channels_by: str = "loss"
    embeddings: float | None = None
    embeddings_as: str = "low-rank"
    pruned_to: float = 1.0
    block_epochs: int = 0
    block_lr: float = 1e-4
    seed: int = 0
    dense: Callable[[], Subject] | None = None


class Known(NamedTuple):
    """What is known before the first block is cut.

    Attributes:
        ranks: of every matrix, by the path of its layer; None where it stays dense. Where channels
            go, that of the layer that takes them is how many are left; those before have none.
        weightings: of the layers in a block, by path, before their inputs are looked at.
    """

    ranks: Mapping[str, int | None]
    weightings: Callable[[int], Mapping[str, Weighting]]


def look_ahead(
    source: DecoderOnDisk,
    tokens: np.ndarray,
    plan: Plan,
    store: Store,
    say: Callable[[str], None],
    told: Told = untold,
) -> Known:
    """Choose the ranks, and take the gradients that the importance needs.

    Gradients at the outputs of layers are taken block by block from the end; other importances that
    need gradients have the whole dense model in memory, which is let go of afterwards.

    Raises:
        LpafError: a choice does not go with another, a share cannot be kept, or the model
            overflows.
    """
    importance, rule = IMPORTANCES[plan.importance], RANK_RULES[plan.ranks]
    check_pair(importance, SOLVERS[plan.solver], plan.ridge)
    shapes, ranks = source.matrices(), store.ranks()
    two_sided = importance is TWO_SIDED
    walks = _walks_ahead(plan)
    if walks and not store.has_sides(source.blocks - 1):  # with those, it is resumed
        passes = "; ".join(f"{i}. {what}" for i, what in enumerate([*walks, "factorization"], 1))
        say(f"passes over the {source.blocks} blocks, each with a time of its own: {passes}")
    whole = {path: Weighting() for path in shapes}
    if importance.of_model is not None and not two_sided:
        assert plan.dense is not None, "this importance needs the dense model"
        say("gradients of the dense model, which is in memory for this")
        found = of_model(importance, plan.dense())
        whole = {path.removesuffix(".kernel"): each for path, each in found.items()}
    spectral = rule.needs_spectra and ranks is None
    if spectral or two_sided:
        _walk_back(source, tokens, plan, whole, store, say, told)
    if ranks is None:
        spectra = _spectra(source, tokens, plan, store, say, told) if spectral else {}
        ranks = ranks_of(source, plan, spectra)
        store.keep_ranks(ranks)

    def weightings(index: int) -> Mapping[str, Weighting]:
        if not store.has_sides(index):
            return whole
        rights = store.sides(index, "right").items()
        return dict(whole) | {
            name.removesuffix(":right"): Weighting(right=jnp.asarray(x)) for name, x in rights
        }

    return Known(ranks, weightings)


def ranks_of(source: DecoderOnDisk, plan: Plan, spectra: Mapping[str, np.ndarray]) -> Ranks:
    """The rank of every matrix, and how many channels are left.

    Raises:
        LpafError: see `choose_ranks`.
    """
    shapes, ranked = source.matrices(), SOLVERS[plan.solver].ranked
    return choose_ranks(
        plan.ranks,
        {
            path: ranked(shapes[path])
            for index in range(source.blocks)
            for path in factored_in(source, plan, index)
        },
        params=plan.params,
        rank=plan.rank,
        spectra=spectra,
        multiple_of=plan.multiple_of,
        least=plan.least,
        channels=_channels(source, plan),
    )


def paths_in(source: DecoderOnDisk, index: int) -> list[str]:
    """The paths of the compressible layers in a block."""
    return [path for path in source.matrices() if path.startswith(f"{source.prefix(index)}.")]


def factored_in(source: DecoderOnDisk, plan: Plan, index: int) -> list[str]:
    """The paths of the layers in a block that become factors, if they are not left dense."""
    between = sliced_in(source, plan, index).values()
    fed = {path for each in between for path in (*each.into, each.out)}
    return [path for path in paths_in(source, index) if path not in fed]


def sliced_in(source: DecoderOnDisk, plan: Plan, index: int) -> dict[str, Between]:
    """Between which layers of a block channels go, by the path of the one that takes them."""
    if plan.channels == "none":
        return {}
    values = source.values_between(index) if plan.channels == "all" else None
    found = [source.feed_forward(index), *([] if values is None else [values])]
    return {each.out: each for each in found}


def _channels(source: DecoderOnDisk, plan: Plan) -> dict[str, Channels]:
    """The channels of all blocks that go, by the path of the layer that takes them."""
    shapes, found = source.matrices(), {}
    for index in range(source.blocks):
        for out, between in sliced_in(source, plan, index).items():
            count = shapes[between.into[0]][1]
            numbers = sum(math.prod(shapes[path]) for path in (*between.into, out))
            found[out] = Channels(count, numbers // count)
    return found


def _walk_back(
    source: DecoderOnDisk,
    tokens: np.ndarray,
    plan: Plan,
    whole: Mapping[str, Weighting],
    store: Store,
    say: Callable[[str], None],
    told: Told,
) -> None:
    """Keep of each block its gradients, its spectra in units of the loss and what is measured."""
    missing = [i for i in reversed(range(source.blocks)) if not store.has_sides(i)]
    if not missing:
        return
    states = store.folder / "states"
    states.mkdir(parents=True, exist_ok=True)
    backward = Backward(source, some_of(tokens), states)
    if not backward.reached(missing[0]):
        ahead = Countdown("blocks forward", source.blocks, told)

        def passed(done: int) -> None:
            left = ahead.left(done)
            say(f"block {done} of {source.blocks}: forward, for gradients{left}")
            if done == source.blocks:
                say("gradients of the loss; the backward pass then compiles, which takes a while")

        backward.forward(passed)
    back = Countdown("blocks backward", len(missing), told)
    for done, index in enumerate(missing, 1):
        block = source.block(index)
        store.keep_sides(index, _sides_of(source, backward, block, index, plan, whole))
        left = back.left(done)
        say(f"block {index + 1} of {source.blocks}: backward, gradients of its outputs{left}")
    shutil.rmtree(states)


def some_of(tokens: np.ndarray) -> np.ndarray:
    """The texts that gradients are taken of."""
    return tokens[evenly(len(tokens), _TEXTS)]


def _walks_ahead(plan: Plan) -> list[str]:
    """The walks through the blocks before the one that factorizes them, in words."""
    walks = ["forward, for gradients", "backward"] if _looks_back(plan) else []
    measured = RANK_RULES[plan.ranks].measured
    return walks + (["predictions with one matrix factorized"] if measured else [])


def _looks_back(plan: Plan) -> bool:
    return plan.importance == TWO_SIDED.name or RANK_RULES[plan.ranks].needs_spectra


def scratch_bytes(source: DecoderOnDisk, tokens: np.ndarray, plan: Plan) -> int:
    """What a walk back has on disk, at most; 0 where there is none."""
    if not _looks_back(plan):
        return 0
    shapes = source.matrices().values()
    width = max(min(shape) for shape in shapes)
    return 4 * (some_of(tokens).size * width * source.blocks + sum(n * n for _, n in shapes))


def _sides_of(
    source: DecoderOnDisk,
    backward: Backward,
    block: nnx.Module,
    index: int,
    plan: Plan,
    whole: Mapping[str, Weighting],
) -> dict[str, np.ndarray]:
    assert TWO_SIDED.of_inputs is not None
    importance, solver = IMPORTANCES[plan.importance], SOLVERS[plan.solver]
    measured, prefix = RANK_RULES[plan.ranks].measured, f"{source.prefix(index)}."
    between = sliced_in(source, plan, index)
    chosen = [*factored_in(source, plan, index), *between]
    paths = {path.removeprefix(prefix): path for path in chosen}
    found: dict[str, np.ndarray] = {}
    for place, sides in backward.block(index, block, list(paths)).items():
        path, w = paths[place], layer_at(block, place).kernel[...]
        if not (jnp.isfinite(sides.inputs.second).all() and jnp.isfinite(sides.gradients).all()):
            raise LpafError(f"{path}: the inputs or gradients are not finite; the model overflows")
        weighting = TWO_SIDED.of_inputs(by_gradients(sides.gradients), sides.inputs)
        if path in between:
            space = in_space(between[path], w, sides.inputs, weighting.right)
            found |= _of_channels(path, space, weighting.right, measured)
            continue
        found[f"{path}:spectrum"] = loss_spectrum(w, weighting)
        if importance is TWO_SIDED:
            assert weighting.right is not None
            found[f"{path}:right"] = np.asarray(weighting.right)
        elif measured:
            weighting = whole[path]
            if importance.of_inputs is not None:
                weighting = importance.of_inputs(weighting, sides.inputs)
        if measured:
            weighting = with_floor(weighting, plan.floor)
            rank = _rank_to_measure(w.shape)
            factors, change = solve_one(solver, w, weighting, rank, plan.ridge)
            found |= {f"{path}:{leaf}": np.asarray(x) for leaf, x in factors._asdict().items()}
            found |= {} if change is None else {f"{path}:change": np.asarray(change)}
    return found


def _of_channels(
    path: str, space: Space, right: Array | None, measured: bool
) -> dict[str, np.ndarray]:
    """What is kept of a layer whose channels are to go: R, what they are worth, and a cut."""
    assert right is not None
    worth = np.sqrt(np.asarray(elimination(space, right).errors, np.float64))
    found = {f"{path}:right": np.asarray(right), f"{path}:spectrum": worth[::-1]}
    if measured:
        _, product = kept_channels(space, _channels_to_measure(len(worth)), right)
        rows = np.flatnonzero(np.any(np.asarray(product) != 0, axis=1))
        found |= {f"{path}:kept": rows, f"{path}:rows": np.asarray(product)[rows]}
        if space.turned is not None:
            found[f"{path}:turn"] = np.asarray(space.turned.turn)[:, rows]
    return found


def _spectra(
    source: DecoderOnDisk,
    tokens: np.ndarray,
    plan: Plan,
    store: Store,
    say: Callable[[str], None],
    told: Told,
) -> dict[str, np.ndarray]:
    """Singular values of all matrices in units of the loss, or of what was measured."""
    spectra: dict[str, np.ndarray] = {}
    for index in range(source.blocks):
        arrays = store.sides(index, "spectrum")
        spectra |= {name.removesuffix(":spectrum"): s for name, s in arrays.items()}
    if not RANK_RULES[plan.ranks].measured:
        return spectra

    def cuts(index: int) -> Iterator[tuple[str, Changed]]:
        kinds = ("a", "b", "change", "kept", "rows", "turn")
        arrays = store.sides(index, *kinds)
        for path in dict.fromkeys(name.rpartition(":")[0] for name in arrays):
            of = {kind: arrays.get(f"{path}:{kind}") for kind in kinds}
            if of["rows"] is None:
                kernel = LowRank(jnp.asarray(of["a"]), jnp.asarray(of["b"])).dense()
            elif of["turn"] is None:
                kernel = jnp.zeros(source.matrices()[path]).at[of["kept"]].set(of["rows"])
            else:
                kernel = LowRank(jnp.asarray(of["turn"]), jnp.asarray(of["rows"])).dense()
            bias = None if of["change"] is None else jnp.asarray(of["change"])
            yield path, Changed(kernel, bias)

    seen = store.seen()
    if seen is None:
        length = min(_LENGTH, tokens.shape[1])
        texts = min(len(tokens), max(1, _MEASURED // length))
        seen = divergences(source, tokens[:texts, :length], cuts, say, told)
        store.keep_seen(seen)
    ranks = {path: _rank_to_measure(shape) for path, shape in source.matrices().items()}
    ranks |= {path: _channels_to_measure(c) for path, (c, _) in _channels(source, plan).items()}
    return scaled(spectra, ranks, seen)


def _channels_to_measure(count: int) -> int:
    return max(1, count // 2)


def _rank_to_measure(shape: tuple[int, int]) -> int:
    m, n = shape
    return max(1, int(_SHARE * m * n / (m + n)))
