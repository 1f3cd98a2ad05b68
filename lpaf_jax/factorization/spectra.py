"""How many dimensions the matrices of a model use, and how many their inputs do."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.checkpoints.factored import dense_matrix
from lpaf_jax.core.machine import one_blas_thread
from lpaf_jax.importance import Moments
from lpaf_jax.linalg import effective_rank, energy_rank, singular_values
from lpaf_jax.models import compressible_layers
from lpaf_jax.models.functional import Params


@one_blas_thread()
def weight_spectra(params: Params) -> list[dict[str, Any]]:
    """Figures of the singular values of every compressible matrix, of a factorized one's product.

    Returns:
        JSON values, one entry a matrix: `name`, `shape` (in, out), `full` (the rank it could have,
        min(in, out)), `effective_rank`, `energy_rank` (how many singular values hold 90 % of the
        sum of squares) and `spectrum`, the singular values relative to the largest.
    """
    found = []
    for path in compressible_layers(params):
        w = dense_matrix(params, path)
        s = singular_values(w)
        entry = {"name": path, "shape": list(w.shape), "full": min(w.shape)}
        found.append(entry | _figures(s))
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


def _roots(moment: Array) -> Array:
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
