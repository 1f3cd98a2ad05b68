"""Factorize the token embeddings of a model, by how often tokens occur."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors import LowRankEmbedding
from lpaf_jax.importance.activations import product
from lpaf_jax.linalg import LowRank, balance
from lpaf_jax.models import as_function, layer_at, parameters, replace_layer
from lpaf_jax.models.functional import Batch, Params

# How many rows of a table are taken at a time.
_ROWS = 4096


def embedding_rank(shape: tuple[int, int], width: float) -> int:
    """The rank E that `--embeddings` asks for.

    Args:
        shape: (V, H) of the table.
        width: E itself, or below 1 the share of its numbers that may be kept.

    Raises:
        LpafError: E (V + H) numbers are no fewer than V H, or a share pays for no rank.
    """
    rows, hidden = shape
    rank = int(width * rows * hidden / (rows + hidden)) if width < 1 else int(width)
    if rank < 1:
        raise LpafError(f"--embeddings {width:g} pays for no rank of a table of {rows} × {hidden}")
    if rank * (rows + hidden) >= rows * hidden:
        most = (rows * hidden - 1) // (rows + hidden)
        raise LpafError(
            f"--embeddings {rank} would not make the table of {rows} × {hidden} smaller: give "
            f"{most} at most"
        )
    return rank


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


def factorized_table(
    table: Array, width: float, counts: np.ndarray, head: Array | None = None
) -> LowRank:
    """Factors of a table T of token embeddings.

    Solves `min Σ_v f_v (t_v − c_v B) M (t_v − c_v B)ᵀ`. M is the identity, or where a head is tied
    to the table halfway between that and `H C / tr C`: an error of a row is then also one of a
    logit, of `(t_v − c_v B) C (t_v − c_v B)ᵀ` in the mean.

    With Q the first E eigenvectors of `M^½ Tᵀ diag(f) T M^½` it is `c_v = t_v M^½ Q` and
    `B = Qᵀ M^-½`: a row is best where it is projected, whatever its f.

    Args:
        table: (V, H).
        width: see `embedding_rank`.
        counts: f, of each token.
        head: C, (H, H), of what goes into a head that is tied to the table.

    Raises:
        LpafError: see `embedding_rank`; or the table is not finite.

    Cost: 2 V H (H + E) + O(H³) FLOP in float64, some thousand rows at a time.
    """
    if not jnp.isfinite(table).all():
        raise LpafError("the token embeddings hold NaN or infinity")
    t, (rows, hidden) = np.asarray(table), table.shape
    rank = embedding_rank((rows, hidden), width)
    half = back = np.eye(hidden)
    if head is not None:
        c = np.asarray(head, np.float64)
        values, vectors = np.linalg.eigh((hidden * c / np.trace(c) + half) / 2)
        half, back = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    gram = np.zeros((hidden, hidden))
    for start in range(0, rows, _ROWS):
        some = t[start : start + _ROWS].astype(np.float64) @ half
        gram += some.T @ (counts[start : start + _ROWS, None] * some)
    q = np.linalg.eigh(gram)[1][:, -rank:]
    codes, basis = t @ (half @ q).astype(t.dtype), (q.T @ back).astype(t.dtype)
    return balance(LowRank(jnp.asarray(codes), jnp.asarray(basis)))


def factorize_embeddings(
    model: nnx.Module,
    path: str,
    width: float,
    counts: np.ndarray,
    head: Array | None = None,
) -> None:
    """Put factors in the place of the table at `path`; see `factorized_table`."""
    found = factorized_table(layer_at(model, path).weight[...], width, counts, head)
    replace_layer(model, path, LowRankEmbedding(found.a, found.b))
