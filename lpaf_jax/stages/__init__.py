"""The steps that recipes are made of."""

from lpaf_jax.stages.base import Context as Context
from lpaf_jax.stages.base import Description as Description
from lpaf_jax.stages.base import Saved as Saved
from lpaf_jax.stages.base import Stage as Stage
from lpaf_jax.stages.compensate import Compensate as Compensate
from lpaf_jax.stages.factorize import Factorize as Factorize
from lpaf_jax.stages.finetune import FineTune as FineTune
from lpaf_jax.stages.mixed_tune import MixedTune as MixedTune
from lpaf_jax.stages.prune import Prune as Prune
from lpaf_jax.stages.prune_groups import PruneGroups as PruneGroups
from lpaf_jax.stages.tune import Tune as Tune
