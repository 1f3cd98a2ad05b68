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
)
from lpaf_jax.models.functional import Params
from lpaf_jax.train import keep_largest

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
        JSON values: figures of every matrix and their means over all, spectra and patterns of
        a few.
    """
    kept = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.size for mask in masks.values())
    largest = keep_largest([jnp.abs(w) for w in dense.values()], jnp.int32(kept))
    patterns = {"first_order": masks, "magnitude": dict(zip(dense, largest, strict=True))}
    by_magnitude = {p: jnp.where(patterns["magnitude"][p], w, 0.0) for p, w in dense.items()}
    versions = {"dense": dense, "first_order": pruned, "magnitude": by_magnitude}
    spectra = {
        name: {path: singular_values(w) for path, w in version.items()}
        for name, version in versions.items()
    }
    figures = {
        name: {path: _rank_figures(s) for path, s in of.items()} for name, of in spectra.items()
    }
    for name, of in patterns.items():
        for path, mask in of.items():
            figures[name][path] |= _mask_figures(mask)
    shown = _from_the_middle(list(dense))
    square = [path for path in shown if dense[path].shape[0] == dense[path].shape[1]]
    return {
        "sparsity": 1 - kept / total,
        "matrices": [
            {"name": _name(path), "shape": list(w.shape)}
            | {name: of[path] for name, of in figures.items()}
            for path, w in dense.items()
        ],
        "spectra": [
            {"name": _name(path)} | {name: _relative(of[path]) for name, of in spectra.items()}
            for path in shown[:_SHOWN_SPECTRA]
        ],
        "patterns": [
            {"name": _name(path), "shape": list(dense[path].shape)}
            | {name: _pack(of[path]) for name, of in patterns.items()}
            for path in square[:_SHOWN_PATTERNS]
        ],
        "mean": {name: _means(list(of.values())) for name, of in figures.items()},
    }


def _name(path: str) -> str:
    return path.removesuffix(".kernel")


def _from_the_middle(paths: list[str]) -> list[str]:
    middle = len(paths) // 2
    return [paths[i] for i in sorted(range(len(paths)), key=lambda i: abs(i - middle))]


def _rank_figures(s: Array) -> dict[str, float]:
    return {
        "effective_rank": float(effective_rank(s)),
        "energy_rank": int(energy_rank(s)),
    }


def _mask_figures(mask: Array) -> dict[str, float]:
    return {
        "kept": float(mask.mean()),
        "empty_rows": float(empty_rows(mask)),
        "empty_columns": float(empty_columns(mask)),
    }


def _means(figures: list[dict[str, float]]) -> dict[str, float]:
    """Means over the matrices, of which each counts the same, whatever its size."""
    # The share kept is known of all weights together: its mean over matrices would mislead.
    keys = figures[0].keys() - {"kept"}
    return {key: float(np.mean([f[key] for f in figures])) for key in sorted(keys)}


def _relative(s: Array) -> list[float]:
    values = np.asarray(s / jnp.maximum(s[0], 1e-30))
    return [float(f"{x:.4g}") for x in values]


def _pack(mask: Array) -> str:
    return base64.b64encode(np.packbits(np.asarray(mask)).tobytes()).decode()
