"""Cut the channels between layers of a block of a decoder: of feed-forward layers, of values."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.checkpoints.walk import Between
from lpaf_jax.core.errors import LpafError
from lpaf_jax.factorization.swap import bias_of
from lpaf_jax.factors import Heads, SlicedLinear
from lpaf_jax.importance import Moment
from lpaf_jax.importance.gradients import SHRINK_INPUTS, shrunk
from lpaf_jax.linalg import Elimination, eliminate_channels, regressed
from lpaf_jax.linalg.arithmetic import matmul
from lpaf_jax.linalg.lapack import eigh
from lpaf_jax.models import Linear

# Share of what a channel is worth that holds it where it is.
_RIDGE = 0.01
# How many rows of a matrix are eliminated at a time.
_ROWS = 32
# Share of the channels that stay because their norms are the smallest, as LoRAP found them to be of
# more use than those after them.
_SMALLEST = 0.01


class Turn(NamedTuple):
    """A basis of the values of each head in which they are dropped, and what it makes of a layer.

    Attributes:
        of_heads: (h, d, d), columns: the basis of each head of values.
        turn: (m, m), that of all that goes into the layer, channel by channel: the rows of one are
            those of all queries that share its head. back: its inverse.
    """

    of_heads: Array
    turn: Array
    back: Array


class Space(NamedTuple):
    """A layer that takes channels, in the basis in which they go.

    Attributes:
        w: its matrix, (m, n). moment: of what goes into it.
        unit: rows a channel.
        turned: the basis, if it is another one than that of the layer.
    """

    w: Array
    moment: Moment
    unit: int
    turned: Turn | None


def in_space(between: Between, w: Array, moment: Moment, right: Array | None) -> Space:
    """The basis in which the channels of a layer go.

    Those of a feed-forward layer pass a function each, and go as they are. Values pass none: any
    basis of a head will do, for which its queries make up. Taken is that of the singular vectors of
    `C^½ [W_1 R^½, W_2 R^½, ...]`, W_i the rows of the queries that share the head and C the mean of
    the moments of what these take.

    Source: for one query a head and without R the value part of MoDeGPT (Lin et al., 2024).
    """
    if between.head is None:
        return Space(w, moment, 1, None)
    turned = _turn(w, moment.second, right, between.head, between.shared)
    turn, back = turned.turn, turned.back
    cross = None if moment.cross is None else matmul(turn.T, matmul(moment.cross, turn))
    seen = Moment(
        matmul(turn.T, matmul(moment.second, turn)), moment.mean @ turn, moment.tokens, cross
    )
    return Space(matmul(back, w), seen, between.shared, turned)


@partial(jax.jit, static_argnums=(3, 4))
def _turn(w: Array, second: Array, right: Array | None, width: int, shared: int) -> Turn:
    m = len(w)
    heads = m // (width * shared)
    rows = w.reshape(heads, shared, width, -1)
    through = rows if right is None else matmul(w, right).reshape(rows.shape)
    each = jnp.arange(heads * shared)
    own = second.reshape(heads * shared, width, heads * shared, width)[each, :, each, :]
    own = jnp.mean(own.reshape(heads, shared, width, width), axis=1)

    def of_head(second: Array, rows: Array, through: Array) -> tuple[Array, Array]:
        values, vectors = eigh(shrunk(second, SHRINK_INPUTS))
        values = jnp.sqrt(jnp.maximum(values, jnp.finfo(w.dtype).eps * values[-1]))
        root = matmul(vectors * values[None], vectors.T)
        inverse = matmul(vectors / values[None], vectors.T)
        gram = jnp.einsum("sin,sjn->ij", rows, through)
        _, directions = eigh(matmul(root, matmul(gram, root)))
        directions = directions[:, ::-1]  # the strongest first
        return matmul(inverse, directions), matmul(directions.T, root)

    # A head that is never given anything is left as it is.
    alive = jnp.trace(own, axis1=1, axis2=2)[:, None, None] > 0
    same = jnp.broadcast_to(jnp.eye(width, dtype=w.dtype), own.shape)
    forth, back = jax.lax.map(lambda of: of_head(*of), (jnp.where(alive, own, same), rows, through))
    forth, back = jnp.where(alive, forth, same), jnp.where(alive, back, same)
    # From (head, query, value) to (head, value, query), so that the rows of a channel are together.
    order = jnp.arange(m).reshape(heads, shared, width).swapaxes(1, 2).reshape(-1)
    repeated = (jnp.repeat(x, shared, axis=0) for x in (forth, back))
    turn, back = (jax.scipy.linalg.block_diag(*x) for x in repeated)
    return Turn(forth, turn[:, order], back[order])


def elimination(space: Space, right: Array | None) -> Elimination:
    """In which order the channels that a layer takes go, and what each adds to the loss."""
    w, moment, unit, _ = space
    block = max(1, _ROWS // unit)
    return eliminate_channels(w, moment.second, right, ridge=_RIDGE, block=block, unit=unit)


def kept_channels(space: Space, count: int, right: Array | None) -> tuple[np.ndarray, np.ndarray]:
    """Which channels are left, and the matrix that takes them, with rows of zeros for the others.

    Those that go are chosen by `eliminate_channels`. The others make up for them as well as they
    can, `argmin_T E‖x W − x̂_S T‖²`, x̂_S those that are left (see `regressed`).

    Args:
        space: of the layer that takes the channels.
        count: how many are left.
        right: R, of the gradients at what comes out of it.
    """
    w, moment, unit, _ = space
    order = np.asarray(elimination(space, right).order)
    kept = np.sort(order[len(order) - count :])
    # Shapes say nothing of how many are left, so that one program serves all blocks.
    chosen = np.zeros((len(order), unit), np.float32)
    chosen[kept] = 1
    return kept, np.asarray(_without(w, moment, jnp.asarray(chosen.reshape(-1, 1))))


@jax.jit
def _without(w: Array, moment: Moment, chosen: Array) -> Array:
    second = chosen * moment.second * chosen.T
    if moment.cross is None:
        product = regressed(w, second, chosen * moment.second, _RIDGE)
    else:
        product = regressed(w, second, chosen * moment.cross)
    return chosen * product


def kept_by_norms(
    dense: Mapping[str, Linear], between: Between, count: int, given: Moment, moment: Moment
) -> tuple[np.ndarray, np.ndarray]:
    """As `kept_channels`, by norms, with nothing made up for.

    What a channel j is worth is `Σ_i ‖diag(E[x²])^½ W_i[:, j]‖ + E[a_j²]^½ ‖V[j, :]‖`, x what goes
    into the layers W_i before it and a what goes into the layer V after it. The least are left out
    but for the smallest hundredth.

    Args:
        dense, between, count, moment: see `slice_layers`.
        given: of what goes into the layers that give channels.

    Source: Li et al., "LoRAP: transformer sub-layers deserve differentiated structured compression
    for large language models" (2024), and its code for the hundredth.
    """

    def root(moment: Moment) -> np.ndarray:
        return np.sqrt(np.maximum(np.diagonal(np.asarray(moment.second, np.float64)), 0))

    into = [np.asarray(dense[path].kernel[...], np.float64) for path in between.into]
    after = np.asarray(dense[between.out].kernel[...])
    worth = root(moment) * np.linalg.norm(after.astype(np.float64), axis=1)
    worth += sum(np.linalg.norm(root(given)[:, None] * w, axis=0) for w in into)
    order = np.argsort(worth, kind="stable")
    smallest = min(int(_SMALLEST * len(order)), count - 1)
    kept = np.sort(np.concatenate([order[:smallest], order[len(order) - count + smallest :]]))
    product = np.zeros_like(after)
    product[kept] = after[kept]
    return kept, product


class Sliced(NamedTuple):
    """What becomes of the layers between which channels lie.

    Attributes:
        layers: those of fewer channels, by path.
        whole: the matrix that takes them all, in a model whose other layers still give them.
    """

    layers: dict[str, SlicedLinear]
    whole: np.ndarray


def slice_layers(
    dense: Mapping[str, Linear],
    between: Between,
    count: int,
    moment: Moment,
    right: Array | None,
    rounded: Callable[[str, np.ndarray], np.ndarray],
    by_norms: Moment | None = None,
) -> Sliced:
    """Layers of fewer channels.

    Args:
        dense: those there are, by path.
        between: which ones, by the same paths.
        count, moment, right: see `kept_channels`.
        rounded: `(path, kernel) -> kernel` as it will be stored.
        by_norms: where channels go by `kept_by_norms`, of what goes into the layers that give them.

    Raises:
        LpafError: what comes out is not finite.
    """
    layers: dict[str, SlicedLinear] = {}

    def put(path: str, kernel: np.ndarray, bias: Any, heads: Heads | None) -> np.ndarray:
        kernel = rounded(path, kernel)
        if not np.isfinite(kernel).all():
            raise LpafError(f"{path}: the remaining weights are not finite in the file's dtype")
        bias = None if bias is None else jnp.asarray(bias)
        layers[path] = SlicedLinear(jnp.asarray(kernel), bias, heads)
        return kernel

    out = dense[between.out]
    space = in_space(between, out.kernel[...], moment, right)
    if by_norms is None:
        kept, product = kept_channels(space, count, right)
    else:
        kept, product = kept_by_norms(dense, between, count, by_norms, moment)
    given, taken, rows = _places(between, space, kept)
    for path in between.into:
        layer = dense[path]
        bias = bias_of(layer)
        bias = None if bias is None else _given(bias[None], space.turned)[0, kept]
        put(path, _given(layer.kernel[...], space.turned)[:, kept], bias, given)
    left = put(between.out, product[rows], bias_of(out), taken)
    whole = np.zeros_like(product)
    whole[rows] = left
    return Sliced(layers, whole if space.turned is None else np.asarray(space.turned.turn) @ whole)


def _given(x: Array, turned: Turn | None) -> np.ndarray:
    """Rows of what a layer gives, (r, channels), in the basis in which channels go."""
    if turned is None:
        return np.asarray(x)
    heads, width, _ = turned.of_heads.shape
    found = jnp.einsum("rhd,hdk->rhk", x.reshape(-1, heads, width), turned.of_heads)
    return np.asarray(found).reshape(len(x), -1)


def _places(
    between: Between, space: Space, kept: np.ndarray
) -> tuple[Heads | None, Heads | None, np.ndarray]:
    """Where the channels that are left lie: as they are given, as they are taken, and in `space`.

    The last are rows of its matrix, in the order in which the layer of fewer channels has them.
    """
    width, shared = between.head, between.shared
    if width is None:
        return None, None, kept
    heads = len(space.w) // (width * shared)
    of = [kept[kept // width == head] for head in range(heads)]
    left = [len(each) for each in of]
    rows = [each * shared + query for each in of for query in range(shared)]
    taken = [count for count in left for _ in range(shared)]
    return (
        Heads("outputs", width, tuple(left)),
        Heads("inputs", width, tuple(taken)),
        np.concatenate(rows),
    )
