"""What makes a weight matter."""

from lpaf_jax.importance.fisher import fisher_scores
from lpaf_jax.importance.score import FIRST_ORDER, first_order_scores
from lpaf_jax.importance.weights import IMPORTANCES, importance

__all__ = ["FIRST_ORDER", "IMPORTANCES", "first_order_scores", "fisher_scores", "importance"]
