"""Stage `pruned`: weights are set to zero while training goes on (step 1 of LPAF)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from tyro.conf import arg

from lpaf_jax.core.errors import SettingError
from lpaf_jax.core.ranges import demand, demand_choice, whole
from lpaf_jax.stages.base import Context, Description, Saved, Stage

# Where scores, masks and second moments of a pruned model lie among the arrays beside its weights.
_SCORE, _MASK, _SQUARE = "score.", "mask.", "square."
_CRITERIA = {
    "magnitude": "those closest to zero (magnitude pruning)",
    "sensitivity": "those that the loss depends on least (first-order sensitivity)",
    "first-order": "those that training moves toward zero (movement pruning)",
}


_STARTS = {
    "finetuned": "During further training",
    "pretrained": "While the pretrained model is fine-tuned again",
}


@dataclass(frozen=True)
class Prune(Stage):
    """Step 1 of LPAF, `UP_first`: train on while keeping the top share of weights."""

    leaves = "pruned"
    logs = "prune"

    criterion: Literal["first-order", "sensitivity", "magnitude"] = "sensitivity"
    """Pruning score: signed first-order (the paper's), unsigned first-order, or magnitude."""
    kept: float = 0.3
    """Share of the weights that pruning keeps (v in the paper)."""
    scope: Literal["global", "matrix"] = "global"
    """Rank the weights over all matrices together, or within each matrix."""
    mask_every: int = 10
    """Steps between updates of the pruning masks."""
    score_decay: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(optional)")] = (
        None
    )
    """Decay factor of the accumulated score at each step. Default: none, a plain sum."""
    prune_epochs: float = 1.0
    """Epochs of pruning."""
    prune_lr: float = 5e-5
    """Peak learning rate of pruning."""
    cooldown: float = 0.3
    """Share of the pruning steps trained at the final sparsity."""
    prune_from: Literal["finetuned", "pretrained"] = "finetuned"
    """Model to prune: the fine-tuned one; or, as in the paper, the pretrained one, while it is
    fine-tuned. The fine-tuned model then only serves as the baseline."""

    def check(self) -> None:
        """See `Stage.check`."""
        demand_choice(self, "criterion", _CRITERIA)
        demand_choice(self, "scope", ("global", "matrix"))
        demand_choice(self, "prune_from", ("finetuned", "pretrained"))
        demand(self, "kept", lambda x: 0 < x <= 1, "in (0, 1]")
        demand(self, "score_decay", lambda x: x is None or 0 < x <= 1, "in (0, 1]")
        demand(self, "prune_lr", lambda x: 0 < x < 1, "in (0, 1)")
        demand(self, "cooldown", lambda x: 0 <= x <= 1, "in [0, 1]")
        demand(self, "prune_epochs", lambda x: 0 < x < float("inf"), "finite and more than 0")
        demand(self, "mask_every", whole(1), "a whole number, at least 1")

    def run(self, context: Context) -> Saved:
        """Prune; scores, masks and Adam's second moments are kept beside the weights."""
        import optax

        from lpaf_jax.checkpoints import load_model
        from lpaf_jax.core.processes import on_host
        from lpaf_jax.models import compressible, is_compressible, parameters, set_parameters
        from lpaf_jax.stages.trainer import Trainer, loop_of, optimizer_of
        from lpaf_jax.tasks.inputs import first_model
        from lpaf_jax.train import cubic_sparsity, prune, task_loss

        inputs, training = context.inputs, context.training
        if self.prune_from == "pretrained":
            model = first_model(inputs, training.seed)
        else:
            model = load_model(context.before)
        told = context.progress.validation
        loop = loop_of(context.log, training, inputs, self.prune_epochs, model, on_batch=told)
        inner, rate = optimizer_of(training, self.prune_lr, loop.steps)
        kept = cubic_sparsity(
            loop.steps,
            start=round(training.warmup * loop.steps),
            cooldown=round(self.cooldown * loop.steps),
            final=self.kept,
        )
        optimizer = prune(
            inner,
            kept,
            lambda params: {path: is_compressible(path) for path in params},
            criterion=self.criterion,
            scope=self.scope,
            mask_every=self.mask_every,
            decay=self.score_decay,
        )
        trainer = Trainer(training, loop, context.progress)
        state = trainer.run(
            task_loss(trainer.function(model), inputs.kind.objective),
            optimizer,
            parameters(model),
            {},
            context.checkpoints("prune"),
            lambda t: rate(t) | {"sparsity": 1.0 - float(kept(t))},
        )
        set_parameters(model, on_host(state.params))
        pruning = state.opt_state
        squares = optax.tree.get(pruning.inner, "nu")
        arrays = {_SCORE: pruning.scores, _MASK: pruning.masks, _SQUARE: squares}
        extra: dict[str, Any] = {}
        for path in compressible(state.params):
            extra |= on_host({start + path: tree[path] for start, tree in arrays.items()})
        return model, extra

    def describe(self, found: Mapping[str, Any]) -> Description:
        """See `Stage.describe`."""
        return Description(
            "Pruned",
            "Pruning",
            f"{_STARTS[self.prune_from]}, a growing share of the compressible weights is set to "
            f"zero, {100 * (1 - self.kept):.0f} % at the end: {_CRITERIA[self.criterion]}. The "
            "matrices keep their shape, so the model is no smaller yet, but the remaining "
            "weights tend to have a lower rank and are easier to factorize.",
            "pruned, before low-rank factorization: many weights of its query, key, value, "
            "attention-output and feed-forward matrices were set to zero. Zeros are stored, so "
            "the file is not smaller.",
        )


class Pruned(NamedTuple):
    """What pruning left beside a model's weights, by kernel path; empty where it left nothing.

    Attributes:
        scores: S. masks: M. squares: Adam's running mean of squared gradients.
    """

    scores: dict[str, Any]
    masks: dict[str, Any]
    squares: dict[str, Any]


def pruning_arrays(folder: Path) -> Pruned:
    """What pruning left in the folder of its model."""
    import jax.numpy as jnp

    from lpaf_jax.checkpoints import load_extra

    extra = load_extra(folder)

    def chosen(start: str) -> dict[str, Any]:
        return {
            name.removeprefix(start): jnp.asarray(value)
            for name, value in extra.items()
            if name.startswith(start)
        }

    return Pruned(chosen(_SCORE), chosen(_MASK), chosen(_SQUARE))


def check_schedule(warmup: float, cooldown: float) -> None:
    """Refuse a schedule that leaves no step for pruning.

    Raises:
        SettingError: warm-up and cool-down take all.
    """
    if warmup + cooldown >= 1:
        raise SettingError(
            ("warmup", "cooldown"), "together must be less than 1: they leave no step for pruning"
        )
