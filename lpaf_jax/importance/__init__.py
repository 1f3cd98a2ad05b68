"""What makes a weight matter."""

from lpaf_jax.importance.activations import Moments, Recorder, activation_moments, input_moments
from lpaf_jax.importance.fisher import fisher_scores
from lpaf_jax.importance.score import FIRST_ORDER, first_order_scores
from lpaf_jax.importance.weights import IMPORTANCES, importance

__all__ = [
    "FIRST_ORDER",
    "IMPORTANCES",
    "Moments",
    "Recorder",
    "activation_moments",
    "first_order_scores",
    "fisher_scores",
    "importance",
    "input_moments",
]
