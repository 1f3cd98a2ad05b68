"""What pruning does to the rank of a model's matrices: first-order against magnitude."""

import base64
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.core.machine import one_blas_thread
from lpaf_jax.factorization.spectra import relative
from lpaf_jax.linalg import (
    effective_rank,
    empty_columns,
    empty_rows,
    energy_rank,
    singular_values,
)
from lpaf_jax.models.functional import Params
from lpaf_jax.train import keep_largest


@one_blas_thread()
def analyse_pruning(dense: Params, pruned: Params, masks: Params) -> dict[str, Any]:
    """Compare the pruned matrices with magnitude pruning at the same overall sparsity.

    Magnitude pruning keeps the largest entries of `dense` over all matrices together, as many as
    the masks keep.

    Args:
        dense: fine-tuned kernels by path. pruned: the same kernels after pruning, with zeros.
        masks: what pruning kept, by path.

    Returns:
        JSON values: figures of every matrix and their means over all; spectra of the three
        matrices whose effective rank pruning lowers most, in the middle and least, in this order;
        patterns of the three square matrices found in the same way.
    """
    kept = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.size for mask in masks.values())
    largest = keep_largest([jnp.abs(w) for w in dense.values()], jnp.int32(kept))
    patterns = {"pruned": masks, "magnitude": dict(zip(dense, largest, strict=True))}
    by_magnitude = {p: jnp.where(patterns["magnitude"][p], w, 0.0) for p, w in dense.items()}
    versions = {"dense": dense, "pruned": pruned, "magnitude": by_magnitude}
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
    drops = {path: _drop(figures["dense"][path], figures["pruned"][path]) for path in dense}
    square = {path: drops[path] for path, w in dense.items() if w.shape[0] == w.shape[1]}
    return {
        "sparsity": 1 - kept / total,
        "matrices": [
            {"name": _name(path), "shape": list(w.shape)}
            | {name: of[path] for name, of in figures.items()}
            for path, w in dense.items()
        ],
        "spectra": [
            {"name": _name(path)} | {name: relative(of[path]) for name, of in spectra.items()}
            for path in _most_middle_least(drops)
        ],
        "patterns": [
            {"name": _name(path), "shape": list(dense[path].shape)}
            | {name: _pack(of[path]) for name, of in patterns.items()}
            for path in _most_middle_least(square)
        ],
        "mean": {name: _means(list(of.values())) for name, of in figures.items()},
    }


def _name(path: str) -> str:
    return path.removesuffix(".kernel")


def _drop(before: dict[str, float], after: dict[str, float]) -> float:
    """Share of the effective rank that is lost; negative where it rises."""
    return 1 - after["effective_rank"] / max(before["effective_rank"], 1e-30)


def _most_middle_least(drops: dict[str, float]) -> list[str]:
    """The matrices at the top, in the middle and at the end of a ranking; fewer where not three."""
    ranking = sorted(drops, key=lambda path: -drops[path])
    places = sorted({0, len(ranking) // 2, len(ranking) - 1}) if ranking else []
    return [ranking[i] for i in places]


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


def _pack(mask: Array) -> str:
    return base64.b64encode(np.packbits(np.asarray(mask)).tobytes()).decode()
