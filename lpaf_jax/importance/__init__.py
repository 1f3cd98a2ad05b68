"""What makes a weight matter."""

from lpaf_jax.importance.score import first_order_scores
from lpaf_jax.importance.weights import IMPORTANCES, importance

__all__ = ["IMPORTANCES", "first_order_scores", "importance"]
