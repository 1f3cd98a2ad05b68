"""Training: jitted steps and the loop around them."""

from lpaf_jax.core.processes import on_host
from lpaf_jax.train.checkpoints import Checkpoints, Stopwatch
from lpaf_jax.train.layout import Layout, make_layout
from lpaf_jax.train.loop import Loop, Monitor, predict, run_steps
from lpaf_jax.train.losses import (
    CLASSIFICATION,
    LANGUAGE,
    REGRESSION,
    SPANS,
    Objective,
    cross_entropy,
    distillation_kl,
    distilled,
    log_likelihood,
    squared_error,
    symmetric_kl,
)
from lpaf_jax.train.prune import PruneState, prune
from lpaf_jax.train.schedules import cubic_sparsity, linear_replacement, warmup_linear
from lpaf_jax.train.select import keep_largest
from lpaf_jax.train.steps import (
    Keys,
    Loss,
    Step,
    TrainState,
    dual_loss,
    initial_state,
    make_step,
    task_loss,
    teacher_parameters,
    with_teacher,
)

__all__ = [
    "CLASSIFICATION",
    "LANGUAGE",
    "REGRESSION",
    "SPANS",
    "Checkpoints",
    "Keys",
    "Layout",
    "Loop",
    "Loss",
    "Monitor",
    "Objective",
    "PruneState",
    "Step",
    "Stopwatch",
    "TrainState",
    "cross_entropy",
    "cubic_sparsity",
    "distillation_kl",
    "distilled",
    "dual_loss",
    "initial_state",
    "keep_largest",
    "linear_replacement",
    "log_likelihood",
    "make_layout",
    "make_step",
    "on_host",
    "predict",
    "prune",
    "run_steps",
    "squared_error",
    "symmetric_kl",
    "task_loss",
    "teacher_parameters",
    "warmup_linear",
    "with_teacher",
]
