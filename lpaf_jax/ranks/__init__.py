"""Who gets which rank: every module of this package registers its own rules."""

from lpaf_jax.core.registry import import_modules
from lpaf_jax.ranks.base import RANK_RULES as RANK_RULES
from lpaf_jax.ranks.base import Channels as Channels
from lpaf_jax.ranks.base import Limits as Limits
from lpaf_jax.ranks.base import Parts as Parts
from lpaf_jax.ranks.base import RankRule as RankRule
from lpaf_jax.ranks.base import Ranks as Ranks
from lpaf_jax.ranks.base import choose_ranks as choose_ranks
from lpaf_jax.ranks.base import register_rank_rule as register_rank_rule
from lpaf_jax.ranks.spectrum import loss_spectrum as loss_spectrum

import_modules(__name__, first="uniform")
