"""What a model does without a tenth of the spectra of all of its matrices."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lpaf_jax.checkpoints import records_of
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.machine import one_blas_thread
from lpaf_jax.data.split import evenly
from lpaf_jax.evaluation.perplexity import Judge
from lpaf_jax.evaluation.serve import judge_of
from lpaf_jax.importance import activation_moments
from lpaf_jax.importance.fisher import fisher_scores
from lpaf_jax.models import as_function, compressible, parameters
from lpaf_jax.models.functional import Batch, Params

GROUPS = 10
# Eigenvalues of a metric count as this share of the largest at least.
_FLOOR = 1e-7
# Batches that the metrics are taken of.
_BATCHES = 20


class Order(NamedTuple):
    """What of a matrix W is in which order: `W = Σ_j a_j b_j`.

    Attributes:
        a: (m, k), T⁻¹ U Σ. b: (k, n), Vᵀ, of the SVD of T W.
    """

    a: np.ndarray
    b: np.ndarray


def dense_judge(folder: Path, data: Path, **chosen: Any) -> Judge:
    """The judge of a dense model; arguments as of `lpaf_jax.evaluation.serve.evaluate_file`.

    Raises:
        LpafError: see `evaluate_file`; or the model is factorized.
    """
    judge = judge_of(folder, data, **chosen)
    if records_of(judge.model):
        raise LpafError(f"{folder} is already factorized: name the dense model")
    return judge


@one_blas_thread()
def without_tenths(
    judge: Judge, *, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Judge a model with the j-th tenth of the singular values of all matrices left out, each j.

    In three orders: of W, of `D W` (D² the Fisher information of the rows, as in FWSVD) and of
    `L^½ W` (L = E[xᵀx] of what goes in, as in DRONE). Where the order is that of what matters, each
    tenth hurts less than the one before.

    Args:
        judge: of a dense model. Importance and moments are taken of what it judges by, too, of
            twenty batches that are spread over all.
        say: is told what is being done.

    Returns:
        JSON values: `metric`, the primary one; `whole`, of the model as it is; `orders`, ten
        figures by name, "plain", "rows" and "inputs"; no "rows" for answers in a text.

    Cost: thirty evaluations, and two or three SVDs of each matrix.

    Source: Hsu et al., "Language model compression with weighted low-rank factorization" (2022),
    figure 1.
    """
    params = parameters(judge.model)
    weights = compressible(params)
    metric, whole = _primary(judge.score(params))
    say(f"{metric} of the whole model: {whole:.4g}")
    found: dict[str, Any] = {"metric": metric, "whole": whole, "orders": {}}
    for name, roots in _metrics(judge, params).items():
        orders = {path: _order(np.asarray(w), roots.get(path)) for path, w in weights.items()}
        scores = []
        for group in range(GROUPS):
            changed = {path: w - _part(orders[path], group) for path, w in weights.items()}
            scores.append(_primary(judge.score(params | changed))[1])
            say(f"{name}: {metric} without tenth {group + 1} of {GROUPS}: {scores[-1]:.4g}")
        found["orders"][name] = scores
    return found


def _primary(scores: Mapping[str, Any]) -> tuple[str, float]:
    name = scores.get("primary", "perplexity")
    return name, float(scores[name])


def _metrics(judge: Judge, params: Params) -> dict[str, dict[str, np.ndarray]]:
    """By name of the order, T² of every matrix: none, of the rows, or (m, m)."""
    inputs = (_without_weights(batch) for batch in _some(judge))
    moments = activation_moments(judge.model, inputs)
    found: dict[str, dict[str, np.ndarray]] = {"plain": {}}
    if judge.loss is not None:
        forward = as_function(judge.model)
        squares = fisher_scores(forward, params, _some(judge), judge.loss, per="batch")
        found["rows"] = {path: np.asarray(s, np.float64).sum(1) for path, s in squares.items()}
    found["inputs"] = {
        f"{path}.kernel": np.asarray(moment.second, np.float64) for path, moment in moments.items()
    }
    return found


def _some(judge: Judge) -> list[Batch]:
    """Batches spread evenly: they come by their length."""
    count = sum(1 for _ in judge.batches())
    chosen = set(evenly(count, _BATCHES).tolist())
    return [batch for i, batch in enumerate(judge.batches()) if i in chosen]


def _without_weights(batch: Batch) -> Batch:
    """Every token that is no padding counts, also where a window shows it again."""
    weight = batch.get("weight")
    of_rows = weight is None or np.ndim(weight) == 1
    return batch if of_rows else {name: x for name, x in batch.items() if name != "weight"}


def _order(w: np.ndarray, squared: np.ndarray | None) -> Order:
    w = w.astype(np.float64)
    if squared is None:
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        return Order(u * s, vt)
    if squared.ndim == 1:
        root = np.sqrt(np.maximum(squared, _FLOOR * squared.max()))[:, None]
        u, s, vt = np.linalg.svd(root * w, full_matrices=False)
        return Order(u * s / root, vt)
    values, vectors = np.linalg.eigh(squared)
    roots = np.sqrt(np.maximum(values, _FLOOR * values.max()))
    u, s, vt = np.linalg.svd((roots * vectors).T @ w, full_matrices=False)
    return Order((vectors / roots) @ (u * s), vt)


def _part(order: Order, group: int) -> Any:
    """The terms of one tenth, all ten of which are W."""
    count = len(order.b)
    some = slice(group * count // GROUPS, (group + 1) * count // GROUPS)
    return jnp.asarray(order.a[:, some] @ order.b[some], jnp.float32)
