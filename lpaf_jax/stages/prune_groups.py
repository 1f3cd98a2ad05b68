"""Stage `factorized`, where heads and channels go in the place of ranks (LoRAPrune)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.ranges import demand, demand_choice, whole
from lpaf_jax.stages.base import Context, Description, Saved, check_adapters
from lpaf_jax.stages.shrink import Shrink

if TYPE_CHECKING:
    from lpaf_jax.models.groups import Groups
    from lpaf_jax.tasks.inputs import Inputs

# Shares of the steps before the first group is masked and after the last one, as in LoRAPrune.
_START, _COOLDOWN = 0.1, 0.1


@dataclass(frozen=True)
class PruneGroups(Shrink):
    """Drop heads of attention and feed-forward channels while adapters (LoRA) are trained.

    The matrices are fixed, and nothing but adapters has a gradient or a state of the optimiser. As
    many heads and channels go in every block, but for those that are spared.
    """

    logs = "prune-groups"

    groups: Literal["all", "channels"] = "all"
    """What to drop: heads and feed-forward channels, or only channels."""
    group_criterion: Literal["lora", "gates", "random"] = "lora"
    """How to score them: by weights times the gradients that adapters estimate (LoRAPrune), by
    the gradient of a gate on each, or at random, as a control."""
    spare_ends: bool = False
    """Drop nothing from the first tenth of the blocks (rounded down) and from the last one, as the
    code of LoRAPrune does; the other blocks lose more."""
    prune_lora: int = 8
    """Rank of the adapters (LoRA) of this stage."""
    lora_alpha: float = 16.0
    """LoRA alpha: the output of the adapters is scaled by this divided by their rank."""
    lora_epochs: float = 2.0
    """Epochs of training the adapters, during which heads and channels are dropped."""
    lora_lr: float = 1e-4
    """Peak learning rate of the adapters."""
    mask_every: int = 10
    """Steps between updates of the masks."""

    def check(self) -> None:
        """See `Stage.check`."""
        super().check()
        demand_choice(self, "groups", ("all", "channels"))
        demand_choice(self, "group_criterion", ("lora", "gates", "random"))
        demand(self, "mask_every", whole(1), "a whole number, at least 1")
        check_adapters(self, "prune_lora")

    def check_inputs(self, inputs: "Inputs") -> None:
        """See `Stage.check_inputs`."""
        self._left(inputs)

    def plan(self, inputs: "Inputs") -> str:
        """See `Shrink.plan`."""
        groups, left, share = self._left(inputs)
        parts = {each.kind: f"{left[each.out]} of {each.total} {each.kind}" for each in groups}
        kept = " and ".join(dict(sorted(parts.items(), reverse=True)).values())
        where = "each block but the spared ones" if self.spare_ends else "each block"
        return f"{kept} in {where}, keeps {100 * share:.1f} % of the compressible weights"

    def _left(self, inputs: "Inputs") -> "tuple[list[Groups], dict[str, int], float]":
        """The groups that may go, how many are left, and what share of the numbers that makes."""
        from lpaf_jax.checkpoints.checkpoint import empty_model
        from lpaf_jax.checkpoints.contents import read_source
        from lpaf_jax.models.groups import counts_left, groups_of, share_left, without_ends

        language = inputs.spec.kind == "language"
        model = empty_model(read_source(inputs.source, "lm" if language else None))
        groups = groups_of(model)
        if not groups:
            raise LpafError(f"{inputs.source} has no heads or channels to drop")
        if self.spare_ends:
            groups = without_ends(groups)
            if not groups:
                raise SettingError(("spare_ends",), "leaves no block to drop anything from")
        share = self.share()
        assert share is not None
        left = counts_left(model, groups, share, heads=self.groups == "all")
        return groups, left, share_left(model, groups, left)

    def run(self, context: Context) -> Saved:
        """Train adapters and mask, from the last checkpoint, then take out what is masked."""
        from lpaf_jax.checkpoints import load_model
        from lpaf_jax.core.processes import on_host
        from lpaf_jax.models import fixed_arrays, parameters, set_parameters
        from lpaf_jax.models.groups import add_gates, drop_groups
        from lpaf_jax.models.lora import add_adapters, merge_adapters, put_adapters, updates
        from lpaf_jax.stages.trainer import Trainer, loop_of, optimizer_of
        from lpaf_jax.train import task_loss
        from lpaf_jax.train.groups import left_of, prune_groups

        training, inputs = context.training, context.inputs
        groups, left, _ = self._left(inputs)
        model = load_model(context.before)
        scale = self.lora_alpha / self.prune_lora
        narrow = None if training.dtype == "float32" else training.dtype
        add_adapters(model, self.prune_lora, scale=scale, seed=training.seed, narrow=narrow)
        add_gates(model, groups)
        told = context.progress.validation
        loop = loop_of(context.log, training, inputs, self.lora_epochs, model, on_batch=told)
        inner, rate = optimizer_of(training, self.lora_lr, loop.steps)
        optimizer = prune_groups(
            inner,
            groups,
            left,
            scale,
            steps=loop.steps,
            start=round(_START * loop.steps),
            cooldown=round(_COOLDOWN * loop.steps),
            criterion=self.group_criterion,
            mask_every=self.mask_every,
            seed=training.seed,
        )
        trainer = Trainer(training, loop, context.progress)
        state = trainer.run(
            task_loss(trainer.function(model), inputs.kind.objective),
            optimizer,
            parameters(model),
            fixed_arrays(model),
            context.checkpoints("prune-groups"),
            rate,
        )
        kept = on_host(left_of(state.opt_state))
        set_parameters(model, on_host(state.params))
        found = updates(model)
        del model, state
        # Into the matrices as they are on disk: those here may be held in a narrower dtype.
        whole_model = load_model(context.before)
        put_adapters(whole_model, found)
        merge_adapters(whole_model)
        drop_groups(whole_model, groups, kept)
        return whole_model, None

    def describe(self, found: Mapping[str, Any]) -> Description:
        """See `Stage.describe`."""
        what = "Feed-forward channels" if self.groups == "channels" else "Heads and channels"
        by = {
            "lora": "those of least importance, scored by their weights times the gradients that "
            "the adapters estimate",
            "gates": "those of least importance, scored by the gradient of a gate on each",
            "random": "drawn at random",
        }[self.group_criterion]
        alike = "every block"
        if self.spare_ends:
            alike += " but the last and the first tenth, rounded down"
        text = (
            f"{what} are dropped, the same number in {alike}: {by}. Meanwhile adapters of rank "
            f"{self.prune_lora} are trained beside the frozen matrices, and merged into them at "
            "the end."
        )
        return Description(
            "Pruned",
            "Pruning heads and channels",
            text,
            f"whose {what.lower()} were pruned while adapters (LoRA) were trained; {alike} keeps "
            "the same number.",
        )
