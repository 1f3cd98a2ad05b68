"""Ranks go where the loss depends on them most."""

from lpaf_jax.linalg import allocate_choices, channel_choices, rank_choices
from lpaf_jax.ranks.base import Limits, Parts, RankRule, Ranks, register_rank_rule


def by_loss(parts: Parts, limits: Limits) -> Ranks:
    """The ranks, and channels, of the least `Σ_p Σ_{j>k} s_pj²` within the budget."""
    (shapes, spectra, channels), (share, multiple_of, least) = parts, limits
    steps = multiple_of, least
    dense = sum(m * n for m, n in shapes.values()) + sum(c * p for c, p in channels.values())
    choices = [
        *(rank_choices(spectra[path], shape, *steps) for path, shape in shapes.items()),
        *(channel_choices(spectra[path], p, *steps) for path, (_, p) in channels.items()),
    ]
    found = allocate_choices(choices, int(share * dense))
    return dict(zip([*shapes, *channels], found, strict=True))


register_rank_rule(
    RankRule(
        "loss",
        "higher ranks where they matter more for the loss, by the two-sided metric; a matrix "
        "that needs its full rank stays dense",
        by_loss,
        needs_spectra=True,
    )
)
