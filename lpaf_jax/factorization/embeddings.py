"""Factorize the token embeddings of a model, by how often tokens occur."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors import LowRankEmbedding
from lpaf_jax.linalg import LowRank, balance, metric_svd
from lpaf_jax.models import layer_at, replace_layer


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


def factorize_embeddings(model: nnx.Module, path: str, width: float, counts: np.ndarray) -> None:
    """Put factors in the place of the table T at `path`: `min Σ_v f_v ‖t_v − c_v B‖²`.

    Args:
        model: whose table it is.
        path: of the layer.
        width: see `embedding_rank`.
        counts: f, of each token.

    Raises:
        LpafError: see `embedding_rank`; or the table is not finite.

    Cost: one SVD of the table.
    """
    table = layer_at(model, path).weight[...]
    if not jnp.isfinite(table).all():
        raise LpafError(f"{path}: the token embeddings hold NaN or infinity")
    rank = embedding_rank(table.shape, width)
    found = balance(LowRank(*metric_svd(table, rank, left=jnp.asarray(counts, table.dtype))))
    replace_layer(model, path, LowRankEmbedding(found.a, found.b))
