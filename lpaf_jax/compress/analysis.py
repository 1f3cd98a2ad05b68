"""What pruning does to the rank of a model's matrices: first-order against magnitude."""

import base64
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.linalg import (
    effective_rank,
    empty_columns,
    empty_rows,
    energy_rank,
    singular_values,
    stable_rank,
)
from lpaf_jax.models.functional import Params

_SHOWN_SPECTRA = 3
_SHOWN_PATTERNS = 2


def analyse_pruning(dense: Params, pruned: Params, masks: Params) -> dict[str, Any]:
    """Compare the pruned matrices with magnitude pruning at the same overall sparsity.

    Magnitude pruning keeps the largest entries of `dense` over all matrices together, as many as
    the masks keep.

    Args:
        dense: fine-tuned kernels by path. pruned: the same kernels after pruning, with zeros.
        masks: what pruning kept, by path.

    Returns:
        JSON values: figures of every matrix, spectra and patterns of a few, and means.
    """
    magnitude = _largest(dense, int(sum(m.sum() for m in masks.values())))
    matrices: list[dict[str, Any]] = []
    spectra: dict[str, dict[str, Array]] = {}
    for path, w in dense.items():
        versions = {
            "dense": (w, None),
            "first_order": (pruned[path], np.asarray(masks[path])),
            "magnitude": (jnp.where(magnitude[path], w, 0.0), magnitude[path]),
        }
        row: dict[str, Any] = {"name": path.removesuffix(".kernel"), "shape": list(w.shape)}
        spectra[path] = {}
        for name, (matrix, mask) in versions.items():
            s = singular_values(matrix)
            spectra[path][name] = s
            row[name] = _figures(s, mask)
        matrices.append(row)
    middle = len(dense) // 2
    shown = sorted(dense, key=lambda path: abs(list(dense).index(path) - middle))
    versions_of = ("dense", "first_order", "magnitude")
    return {
        "sparsity": 1 - float(np.mean(np.concatenate([np.ravel(m) for m in masks.values()]))),
        "matrices": matrices,
        "spectra": [
            {"name": path.removesuffix(".kernel")}
            | {v: _relative(spectra[path][v]) for v in versions_of}
            for path in shown[:_SHOWN_SPECTRA]
        ],
        "patterns": [
            {
                "name": path.removesuffix(".kernel"),
                "shape": list(dense[path].shape),
                "first_order": _pack(np.asarray(masks[path])),
                "magnitude": _pack(magnitude[path]),
            }
            for path in [p for p in shown if dense[p].shape[0] == dense[p].shape[1]][
                :_SHOWN_PATTERNS
            ]
        ],
        "mean": {
            v: {"effective_rank": float(np.mean([row[v]["effective_rank"] for row in matrices]))}
            for v in versions_of
        },
    }


def _figures(s: Array, mask: np.ndarray | None) -> dict[str, float]:
    figures = {
        "effective_rank": float(effective_rank(s)),
        "stable_rank": float(stable_rank(s)),
        "energy_rank": int(energy_rank(s)),
    }
    if mask is not None:
        figures |= {
            "kept": float(mask.mean()),
            "empty_rows": float(empty_rows(jnp.asarray(mask))),
            "empty_columns": float(empty_columns(jnp.asarray(mask))),
        }
    return figures


def _largest(weights: Params, count: int) -> dict[str, np.ndarray]:
    sizes = np.abs(np.concatenate([np.ravel(w) for w in weights.values()]))
    threshold = np.partition(sizes, sizes.size - count)[sizes.size - count]
    return {path: np.abs(np.asarray(w)) >= threshold for path, w in weights.items()}


def _relative(s: Array) -> list[float]:
    values = np.asarray(s / jnp.maximum(s[0], 1e-30))
    return [float(f"{x:.4g}") for x in values]


def _pack(mask: np.ndarray) -> str:
    return base64.b64encode(np.packbits(mask).tobytes()).decode()
