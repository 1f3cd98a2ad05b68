"""What makes a weight matter: every module of this package registers its own importances."""

from lpaf_jax.core.registry import import_modules
from lpaf_jax.importance.activations import Moment as Moment
from lpaf_jax.importance.activations import Moments as Moments
from lpaf_jax.importance.activations import activation_moments as activation_moments
from lpaf_jax.importance.activations import input_moments as input_moments
from lpaf_jax.importance.base import IMPORTANCES as IMPORTANCES
from lpaf_jax.importance.base import Importance as Importance
from lpaf_jax.importance.base import Subject as Subject
from lpaf_jax.importance.base import Weighting as Weighting
from lpaf_jax.importance.base import measure as measure
from lpaf_jax.importance.base import of_model as of_model
from lpaf_jax.importance.base import register_importance as register_importance
from lpaf_jax.importance.base import with_floor as with_floor
from lpaf_jax.importance.fisher import fisher_scores as fisher_scores
from lpaf_jax.importance.gradients import TWO_SIDED as TWO_SIDED
from lpaf_jax.importance.gradients import gradient_moments as gradient_moments
from lpaf_jax.importance.information import fisher_weightings as fisher_weightings
from lpaf_jax.importance.score import FIRST_ORDER as FIRST_ORDER
from lpaf_jax.importance.score import first_order_scores as first_order_scores

import_modules(__name__)
