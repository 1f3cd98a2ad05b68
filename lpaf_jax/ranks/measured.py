"""Ranks go where cutting one matrix was seen to change the answers most."""

from lpaf_jax.ranks.base import RankRule, register_rank_rule
from lpaf_jax.ranks.loss import by_loss

register_rank_rule(
    RankRule(
        "measured",
        "as loss, with the spectrum of each matrix scaled by how far the answers move when it is "
        "cut alone",
        by_loss,
        needs_spectra=True,
        measured=True,
    )
)
