"""Factorize the token embeddings of a model, by how often tokens occur."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors import KINDS, LOW_RANK_EMBEDDING, Record
from lpaf_jax.factors.train_embedding import split
from lpaf_jax.importance.activations import product
from lpaf_jax.linalg import LowRank, balance, nearest_kronecker
from lpaf_jax.models import as_function, layer_at, parameters, replace_layer
from lpaf_jax.models.functional import Batch, Params

# How many rows of a table are taken at a time.
_ROWS = 4096


Factors = dict[str, Array]


class TableForm(NamedTuple):
    """What a table of token embeddings can become.

    Attributes:
        text: of V × H numbers are replaced by ..., for people.
        record: `(shape, width)` to what config.json will say; raises LpafError where that is no
            smaller.
        solve: `(T, record, counts, C) -> factors` by leaf, of a finite table.
        looks_at_head: whether C, of what goes into a head that is tied to the table, has a say.
        by_counts: whether frequent tokens are to come out nearest.
    """

    text: str
    record: Callable[[tuple[int, int], float], Record]
    solve: Callable[[Array, Record, np.ndarray, Array | None], Factors]
    looks_at_head: bool = False
    by_counts: bool = False


def _low_rank(shape: tuple[int, int], width: float) -> Record:
    rows, hidden = shape
    rank = int(width * rows * hidden / (rows + hidden)) if width < 1 else int(width)
    if rank < 1:
        raise LpafError(
            f"--embeddings {width:g} is too small for rank 1 of the {rows} × {hidden} table: give "
            "more"
        )
    if rank * (rows + hidden) >= rows * hidden:
        most = (rows * hidden - 1) // (rows + hidden)
        raise LpafError(
            f"--embeddings {rank} would not make the {rows} × {hidden} table smaller: give at "
            f"most {most}"
        )
    return LOW_RANK_EMBEDDING.of_rank(rank)


def _of_share(width: float, form: str) -> float:
    """`width`, which must be a share for a form that has no width."""
    if width >= 1:
        raise LpafError(
            f"--embeddings {width:g} is a width, but --embeddings-as {form} takes the share of "
            "the parameters to keep: give a share such as 0.5"
        )
    return width


def _kronecker(shape: tuple[int, int], width: float) -> Record:
    """One product, of the longest pieces that the share pays for."""
    (rows, hidden), share = shape, _of_share(width, "kronecker")
    kind = KINDS["kronecker_embedding"]
    for pattern in range(2, hidden + 1):
        record = {"kind": kind.name, "rank": 1, "pattern": pattern}
        if hidden % pattern == 0 and kind.size(record, shape) <= share * rows * hidden + pattern:
            return record
    raise LpafError(
        f"--embeddings {share:g} is too small for a Kronecker product of the {rows} × {hidden} "
        "table: give more"
    )


def _kronecker_sums(shape: tuple[int, int], width: float) -> Record:
    """As many terms as the share pays for, in shapes whose single term has few numbers."""
    (rows, hidden), share = shape, _of_share(width, "kronecker-sums")
    (v1, h1), (v2, h2) = _grid(rows, hidden)
    term = v1 * h1 + v2 * h2
    rank = min(int(share * rows * hidden / term), v1 * h1, v2 * h2)
    if rank < 1:
        raise LpafError(
            f"--embeddings {share:g} is too small for a Kronecker product of {v1} × {h1} and "
            f"{v2} × {h2}, {term} parameters of {rows * hidden}: give more"
        )
    return {"kind": "kronecker_sum_embedding", "rank": rank, "rows": rows, "fine": [v2, h2]}


def _grid(rows: int, hidden: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """((v1, h1), (v2, h2)), v1 v2 ≥ V and h1 h2 = H: what A and B of one term are.

    Of those whose term is within a twentieth of the fewest numbers, the one where a token gathers
    fewest, h1 + h2 a term: (258, 24) and (195, 32) of GPT-2's 50,257 × 768, not (6283, 1) and
    (8, 768). V is seldom v1 v2 itself, so the last rows of the grid may belong to no token.
    """
    found = []
    for h1 in (h for h in range(1, hidden + 1) if hidden % h == 0):
        h2 = hidden // h1
        # v1 h1 + V h2 / v1 is least at this v1; the whole numbers beside it are as good as any.
        v1 = math.isqrt(max(1, rows * h2 // h1))
        for groups in range(max(1, v1 - 1), v1 + 3):
            places = -(-rows // groups)
            found.append(((groups, h1), (places, h2)))
    least = min(_numbers(of) for of in found)
    near = (of for of in found if _numbers(of) <= 1.05 * least)
    return min(near, key=lambda of: (of[0][1] + of[1][1], _numbers(of)))


def _numbers(shapes: tuple[tuple[int, int], tuple[int, int]]) -> int:
    return sum(map(math.prod, shapes))


def _trains(shape: tuple[int, int], width: float) -> Record:
    """Two cores, whose digits are as near each other as H has them; the largest rank."""
    (_, hidden), share = shape, _of_share(width, "trains")
    first = max(d for d in range(1, math.isqrt(hidden) + 1) if hidden % d == 0)
    rank = min(int(share * hidden / (first + hidden // first)), first)
    if first == 1:
        raise LpafError(
            f"--embeddings-as trains splits the {hidden} numbers of a token in two, but {hidden} "
            "is prime: use another form"
        )
    if rank < 1:
        raise LpafError(
            f"--embeddings {share:g} is too small for a tensor train of {first} · "
            f"{hidden // first}: give more"
        )
    return {"kind": "train_embedding", "rank": rank, "digits": [first, hidden // first]}


def token_counts(texts: Iterable[np.ndarray], rows: int) -> np.ndarray:
    """How often each token occurs, and once more, so that none counts for nothing."""
    found = np.ones(rows, np.int64)
    for ids in texts:
        found += np.bincount(ids, minlength=rows)
    return found


def head_moment(model: nnx.Module, batches: Iterable[Batch]) -> Array:
    """E[hᵀh], (H, H), h what goes into the head of a language model."""
    forward, params = as_function(model, hidden=True), parameters(model)

    @jax.jit
    def sums(params: Params, batch: Batch) -> tuple[Array, Array]:
        hidden = forward(params, {}, batch).hidden[-1]
        shown = batch["attention_mask"][..., None].astype(hidden.dtype)
        return product(hidden * shown, hidden), jnp.sum(shown)

    found = [sums(params, batch) for batch in batches]
    second, tokens = (sum(part) for part in zip(*found, strict=True))
    return jnp.asarray(second / tokens)


def _solve_low_rank(
    table: Array, record: Record, counts: np.ndarray, head: Array | None
) -> Factors:
    """Factors of a table T of token embeddings.

    Solves `min Σ_v f_v (t_v − c_v B) M (t_v − c_v B)ᵀ`. M is the identity, or where a head is tied
    to the table halfway between that and `H C / tr C`: an error of a row is then also one of a
    logit, of `(t_v − c_v B) C (t_v − c_v B)ᵀ` in the mean.

    With Q the first E eigenvectors of `M^½ Tᵀ diag(f) T M^½` it is `c_v = t_v M^½ Q` and
    `B = Qᵀ M^-½`: a row is best where it is projected, whatever its f.

    Args:
        table: (V, H).
        record: of the rank E.
        counts: f, of each token.
        head: C, (H, H), of what goes into a head that is tied to the table.

    Cost: 2 V H (H + E) + O(H³) FLOP in float64, some thousand rows at a time.
    """
    t, (rows, hidden) = np.asarray(table), table.shape
    half = back = np.eye(hidden)
    if head is not None:
        c = np.asarray(head, np.float64)
        values, vectors = np.linalg.eigh((hidden * c / np.trace(c) + half) / 2)
        half, back = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    gram = np.zeros((hidden, hidden))
    for start in range(0, rows, _ROWS):
        some = t[start : start + _ROWS].astype(np.float64) @ half
        gram += some.T @ (counts[start : start + _ROWS, None] * some)
    q = np.linalg.eigh(gram)[1][:, -record["rank"] :]
    codes, basis = t @ (half @ q).astype(t.dtype), (q.T @ back).astype(t.dtype)
    balanced = balance(LowRank(jnp.asarray(codes), jnp.asarray(basis)))
    return {"codes": balanced.a, "basis": balanced.b}


def _solve_kronecker(
    table: Array, record: Record, counts: np.ndarray, head: Array | None
) -> Factors:
    """Solve `min Σ_v f_v ‖t_v − Σ_t a_vt ⊗ b_t‖²`, the b of norm 1.

    With every row as one of H/f × f they are the first r directions of all of them together, by
    their counts. What goes into a tied head has no say.
    """
    t, width = np.asarray(table), record["pattern"]
    pieces, gram = t.reshape(len(t), -1, width), np.zeros((width, width))
    for start in range(0, len(t), _ROWS):
        some = pieces[start : start + _ROWS].astype(np.float64)
        weighed = counts[start : start + _ROWS, None, None] * some
        gram += some.reshape(-1, width).T @ weighed.reshape(-1, width)
    q = np.linalg.eigh(gram)[1][:, ::-1][:, : record["rank"]].astype(t.dtype)
    return {"pieces": jnp.asarray((pieces @ q).swapaxes(1, 2)), "patterns": jnp.asarray(q.T)}


def _solve_kronecker_sums(
    table: Array, record: Record, counts: np.ndarray, head: Array | None
) -> Factors:
    """The nearest sum; as rows share all its numbers, counts would leave it no closed form."""
    (rows, hidden), (v2, h2) = table.shape, record["fine"]
    v1, h1 = -(-rows // v2), hidden // h2
    grid = jnp.pad(table, ((0, v1 * v2 - rows), (0, 0)))
    found = nearest_kronecker(grid, ((v1, h1), (v2, h2)), record["rank"])
    return {"coarse": found.a.swapaxes(0, 1), "fine": found.b.swapaxes(0, 1)}


def _solve_trains(table: Array, record: Record, counts: np.ndarray, head: Array | None) -> Factors:
    """Every row by itself, whatever its count and the head."""
    digits, rank = tuple(record["digits"]), record["rank"]
    starts = range(0, len(table), _ROWS)
    parts = [split(table[start : start + _ROWS], digits, rank) for start in starts]
    return {leaf: jnp.concatenate([part[leaf] for part in parts]) for leaf in parts[0]}


FORMS = {
    "low-rank": TableForm(
        "the product of a V × E table and an E × H matrix", _low_rank, _solve_low_rank, True, True
    ),
    "kronecker": TableForm(
        "a Kronecker product of a V × H/f table and a row of length f",
        _kronecker,
        _solve_kronecker,
        by_counts=True,
    ),
    "kronecker-sums": TableForm(
        "a sum of Kronecker products of two smaller tables", _kronecker_sums, _solve_kronecker_sums
    ),
    "trains": TableForm("one tensor train per token", _trains, _solve_trains),
}
"""By the name that `--embeddings-as` has for them."""


def table_record(form: str, shape: tuple[int, int], width: float) -> Record:
    """What config.json will say of a table that `--embeddings` makes smaller.

    Args:
        form: one of `FORMS`.
        shape: (V, H) of the table.
        width: E itself, or below 1 the share of its numbers that may be kept.

    Raises:
        LpafError: it would be no smaller, or a share pays for nothing.
    """
    return FORMS[form].record(shape, width)


def factorized_table(
    form: str, table: Array, width: float, counts: np.ndarray, head: Array | None = None
) -> tuple[Record, Factors]:
    """What a table T becomes: its record, and its factors by leaf.

    Args:
        form: one of `FORMS`. width: see `table_record`.
        table: (V, H).
        counts: f, of each token.
        head: C, (H, H), of what goes into a head that is tied to the table.

    Raises:
        LpafError: see `table_record`; or the table is not finite.
    """
    if not jnp.isfinite(table).all():
        raise LpafError("the token embeddings contain NaN or infinity")
    rows, hidden = table.shape
    record = table_record(form, (rows, hidden), width)
    return record, FORMS[form].solve(table, record, counts, head)


def factorize_embeddings(
    model: nnx.Module,
    path: str,
    width: float,
    counts: np.ndarray,
    head: Array | None = None,
    form: str = "low-rank",
) -> None:
    """Put factors in the place of the table at `path`; see `factorized_table`."""
    table = layer_at(model, path).weight[...]
    put_factors(model, path, *factorized_table(form, table, width, counts, head))


def put_factors(model: nnx.Module, path: str, record: Record, factors: Factors) -> None:
    """Put the layer of these factors in the place of the table at `path`."""
    replace_layer(model, path, KINDS[record["kind"]].layer(factors, None, record))
