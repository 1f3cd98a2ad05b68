"""Importances of what pruning leaves behind, and none at all."""

import jax.numpy as jnp
from jax import Array

from lpaf_jax.importance.base import Importance, Part, Subject, Weighting, register_importance
from lpaf_jax.importance.score import first_order_scores
from lpaf_jax.models.functional import as_function, parameters

_ENTRIES: frozenset[Part] = frozenset({"entries"})


def _masked(subject: Subject, path: str, value: Array) -> Weighting:
    mask = subject.masks.get(path)
    return Weighting(entries=value if mask is None else jnp.where(mask, value, 0.0))


def _scores(subject: Subject) -> dict[str, Weighting]:
    scores = subject.scores
    if not scores:  # nothing was pruned: they are summed at fixed weights
        assert subject.loss is not None
        forward, params = as_function(subject.model), parameters(subject.model)
        scores = first_order_scores(forward, params, subject.batches(None), subject.loss)
    return {p: _masked(subject, p, jnp.maximum(scores[p], 0.0)) for p in subject.weights}


def _masks(subject: Subject) -> dict[str, Weighting]:
    return {p: _masked(subject, p, jnp.ones_like(w)) for p, w in subject.weights.items()}


def _magnitudes(subject: Subject) -> dict[str, Weighting]:
    return {p: _masked(subject, p, jnp.abs(w)) for p, w in subject.weights.items()}


def _squares(subject: Subject) -> dict[str, Weighting]:
    return {p: _masked(subject, p, subject.second_moments[p]) for p in subject.weights}


register_importance(Importance("none", "to minimise the unweighted error"))
register_importance(
    Importance(
        "score",
        "to preserve the weights with a high score, gradient times weight",
        _ENTRIES,
        frozenset({"loss"}),
        _scores,
        source="I = max(S, 0) ⊙ M; Ren & Zhu, 2024, who do not mention negative scores",
    )
)
register_importance(
    Importance(
        "mask",
        "to preserve the weights that pruning kept",
        _ENTRIES,
        of_model=_masks,
        source="I = M; Ren & Zhu, 2024",
    )
)
register_importance(
    Importance("magnitude", "to preserve the largest weights", _ENTRIES, of_model=_magnitudes)
)
register_importance(
    Importance(
        "adam",
        "to preserve the weights whose gradients were large during pruning",
        _ENTRIES,
        frozenset({"pruning"}),
        _squares,
        source="Adam's second moments, a running mean of squared gradients",
    )
)
