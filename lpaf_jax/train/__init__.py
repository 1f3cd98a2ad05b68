"""Training: jitted steps and the loop around them."""

from lpaf_jax.train.checkpoints import Checkpoints, Stopwatch
from lpaf_jax.train.loop import Monitor, Stage, predict, run_steps
from lpaf_jax.train.losses import cross_entropy, symmetric_kl
from lpaf_jax.train.prune import PruneState, prune
from lpaf_jax.train.schedules import cubic_sparsity, linear_replacement, warmup_linear
from lpaf_jax.train.select import keep_largest
from lpaf_jax.train.steps import TrainState, dual_loss, initial_state, make_step, task_loss

__all__ = [
    "Checkpoints",
    "Monitor",
    "PruneState",
    "Stage",
    "Stopwatch",
    "TrainState",
    "cross_entropy",
    "cubic_sparsity",
    "dual_loss",
    "initial_state",
    "keep_largest",
    "linear_replacement",
    "make_step",
    "predict",
    "prune",
    "run_steps",
    "symmetric_kl",
    "task_loss",
    "warmup_linear",
]
