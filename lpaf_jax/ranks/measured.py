"""Ranks go where cutting one matrix was seen to change the answers most."""

from lpaf_jax.ranks.base import RankRule, register_rank_rule
from lpaf_jax.ranks.loss import by_loss

register_rank_rule(
    RankRule(
        "measured",
        "as loss, with each spectrum scaled by how far the predictions change when only that "
        "matrix is factorized",
        by_loss,
        needs_spectra=True,
        measured=True,
    )
)
