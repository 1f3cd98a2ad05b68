"""Stage `dense`: the pretrained model, fine-tuned on the task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lpaf_jax.core.ranges import demand
from lpaf_jax.stages.base import Context, Description, Saved, Stage

# Steps that a new head hardly learns in.
_FEW = 100


@dataclass(frozen=True)
class FineTune(Stage):
    """Fine-tune the pretrained model on the task."""

    leaves = "dense"
    logs = "finetune"

    finetune_epochs: float = 2.0
    """Epochs of fine-tuning; 0 uses MODEL as it is, already fine-tuned."""
    finetune_lr: float = 8e-5
    """Peak learning rate of fine-tuning."""

    def check(self) -> None:
        """See `Stage.check`."""
        demand(self, "finetune_epochs", lambda x: 0 <= x < math.inf, "finite and at least 0")
        demand(self, "finetune_lr", lambda x: 0 < x < 1, "in (0, 1)")

    def run(self, context: Context) -> Saved:
        """Fine-tune the pretrained model, or take it as it is after no epoch of that."""
        from lpaf_jax.core.processes import on_host
        from lpaf_jax.data.batches import steps_per_epoch
        from lpaf_jax.models import parameters, set_parameters
        from lpaf_jax.stages.trainer import Trainer, loop_of, optimizer_of
        from lpaf_jax.tasks.inputs import first_model
        from lpaf_jax.train import task_loss

        inputs, training = context.inputs, context.training
        model = first_model(inputs, training.seed)
        if self.finetune_epochs == 0:
            return model, None
        told = context.progress.validation
        epochs = self.finetune_epochs
        loop = loop_of(context.log, training, inputs, epochs, model, on_batch=told)
        if loop.steps < _FEW:
            more = math.ceil(_FEW / steps_per_epoch(len(loop.data), loop.batch_size))
            context.progress.warn(
                f"fine-tuning has only {loop.steps} steps, so the dense model may learn too "
                f"little; --finetune-epochs {more} gives at least {_FEW}"
            )
        optimizer, rate = optimizer_of(training, self.finetune_lr, loop.steps)
        trainer = Trainer(training, loop, context.progress)
        loss = task_loss(trainer.function(model), inputs.kind.objective)
        checkpoints = context.checkpoints("finetune")
        state = trainer.run(loss, optimizer, parameters(model), {}, checkpoints, rate)
        set_parameters(model, on_host(state.params))
        return model, None

    def describe(self, found: Mapping[str, Any]) -> Description:
        """See `Stage.describe`."""
        given = self.finetune_epochs == 0
        trained = "as given, without further training" if given else "trained on the task"
        return Description(
            "Dense",
            "Fine-tuning",
            f"The uncompressed model, {trained}. Later figures are compared with this one.",
            "before compression: the starting point and baseline of low-rank factorization.",
        )
