"""The diagonal of the Fisher information as an importance."""

from lpaf_jax.importance.base import Importance, Subject, Weighting, register_importance
from lpaf_jax.importance.fisher import fisher_scores
from lpaf_jax.models.functional import as_function, parameters


def fisher_weightings(subject: Subject) -> dict[str, Weighting]:
    """`I = E[(∂L/∂W)²]` over single examples, by kernel path."""
    assert subject.loss is not None
    found = fisher_scores(
        as_function(subject.model), parameters(subject.model), subject.batches(), subject.loss
    )
    return {path: Weighting(entries=found[path]) for path in subject.weights}


register_importance(
    Importance(
        "fisher",
        "to preserve the weights that the loss is most sensitive to",
        frozenset({"entries"}),
        frozenset({"loss"}),
        fisher_weightings,
        source="I = E[(∂L/∂W)²]; Hsu et al., 2022",
    )
)
