"""How many dimensions the matrices of a model use, and how many their inputs do."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpaf_jax.checkpoints.factored import dense_matrix, records_of
from lpaf_jax.core.machine import one_blas_thread
from lpaf_jax.factors import KINDS
from lpaf_jax.importance import Moments
from lpaf_jax.linalg import effective_rank, energy_rank, singular_values
from lpaf_jax.models import compressible_layers
from lpaf_jax.models.functional import Params, parameters


@one_blas_thread()
def weight_spectra(params: Params) -> list[dict[str, Any]]:
    """Figures of the singular values of every compressible matrix, of a factorized one's product.

    Returns:
        JSON values, one entry a matrix: `name`, `shape` (in, out), `full` (the rank it could have,
        min(in, out)), `effective_rank`, `energy_rank` (how many singular values hold 90 % of the
        sum of squares) and `spectrum`, the singular values relative to the largest; and `entries`,
        see `entry_figures`.
    """
    found = []
    for path in compressible_layers(params):
        w = dense_matrix(params, path)
        s = singular_values(w)
        entry = {"name": path, "shape": list(w.shape), "full": min(w.shape)}
        found.append(entry | _figures(s) | {"entries": entry_figures(np.asarray(w))})
    return found


def entry_figures(w: np.ndarray) -> dict[str, float]:
    """What the entries of a matrix are like.

    Returns:
        `variance`; `kurtosis`, `E[(w − w̄)⁴] / Var² − 3`, 0 for a normal distribution; `hoyer`,
        `(√N − ‖w‖₁/‖w‖₂) / (√N − 1)`, 0 where all are as large and 1 where one alone is not 0;
        `tiny`, the share that is less than a tenth of the standard deviation; `weak_rows` and
        `weak_columns`, the share whose norm is less than a tenth of the median.

    Source: Hoyer, "Non-negative matrix factorization with sparseness constraints" (2004).
    """
    w = w.astype(np.float64)
    variance, most = float(w.var()), np.sqrt(w.size)
    flat = float(np.abs(w).sum() / max(float(np.linalg.norm(w)), 1e-300))
    weak = [np.linalg.norm(w, axis=axis) for axis in (1, 0)]
    return {
        "variance": variance,
        "kurtosis": float(((w - w.mean()) ** 4).mean() / max(variance**2, 1e-300)) - 3,
        "hoyer": float((most - flat) / max(most - 1, 1e-300)),
        "tiny": float((np.abs(w) < 0.1 * np.sqrt(variance)).mean()),
        "weak_rows": float((weak[0] < 0.1 * np.median(weak[0])).mean()),
        "weak_columns": float((weak[1] < 0.1 * np.median(weak[1])).mean()),
    }


@one_blas_thread()
def output_spectra(model: nnx.Module, moments: Moments) -> list[dict[str, Any]]:
    """The same of what comes out of every matrix, before the bias, and without its mean.

    These are the roots of the eigenvalues of `Wᵀ (E[xᵀx] − E[x]ᵀE[x]) W`, so that no pass of the
    text is needed beside that of the moments.

    Args:
        model: the moments are of. moments: from `activation_moments`.

    Returns:
        JSON values, one entry a matrix: `name`, `shape` (tokens, out), `full` (the rank that they
        could have), and the figures of `feature_spectra`.
    """
    params, records, found = parameters(model), records_of(model), []
    for path in compressible_layers(params):
        w, moment = np.asarray(dense_matrix(params, path), np.float64), moments[path]
        mean = np.asarray(moment.mean, np.float64)
        centred = np.asarray(moment.second, np.float64) - np.outer(mean, mean)
        if len(mean) > len(w):  # a layer of fewer channels that is given those of whole heads
            record = records[path]
            taken = KINDS[record["kind"]].places(record, (len(mean), w.shape[1])).rows
            centred = centred[np.ix_(taken, taken)]
        s = _roots(w.T @ centred @ w)
        full = min(moment.tokens, *w.shape)
        entry = {"name": path, "shape": [moment.tokens, w.shape[1]], "full": full}
        found.append(entry | _figures(s[:full]))
    return found


@one_blas_thread()
def feature_spectra(moments: Moments) -> list[dict[str, Any]]:
    """The same of the inputs: of the singular values of all of them stacked, as rows.

    These are the roots of the eigenvalues of `E[x xᵀ]`, up to the number of tokens; means are not
    taken off, as a factorization of the weights cannot take them off either.

    Args:
        moments: from `activation_moments`.

    Returns:
        JSON values, one entry an input: `name` of the first of the layers that share it, `names`
        of all of them, `shape` (tokens, width), `full`, and the figures of `weight_spectra`.
    """
    return [
        {"name": names[0], "names": names, "shape": [tokens, width], "full": min(tokens, width)}
        | _figures(_roots(moment))
        for names, moment, tokens, width in _inputs(moments)
    ]


def _inputs(moments: Moments) -> Iterator[tuple[list[str], Array, int, int]]:
    """Each input once, with all layers that are given it."""
    names: dict[int, list[str]] = {}
    for path, moment in moments.items():
        names.setdefault(id(moment.second), []).append(path)
    for of in names.values():
        moment = moments[of[0]]
        yield of, moment.second, moment.tokens, len(moment.second)


def _roots(moment: Any) -> Array:
    # Roots of eigenvalues near 0 double the digits that are lost: float32 has none to spare.
    values = np.linalg.eigvalsh(np.asarray(moment, np.float64))[::-1]
    return jnp.asarray(np.sqrt(np.maximum(values, 0)), jnp.float32)


def relative(s: Array) -> list[float]:
    """Singular values over the largest, to four digits; zeros where all are."""
    values = np.asarray(s)
    return [float(f"{x:.4g}") for x in values / (values[0] if values[0] > 0 else 1)]


def _figures(s: Array) -> dict[str, Any]:
    return {
        "effective_rank": round(float(effective_rank(s)), 2),
        "energy_rank": int(energy_rank(s)),
        "spectrum": relative(s),
    }
