"""Stage `tuned`: the factors are trained on the task (step 3 of LPAF)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from tyro.conf import arg

from lpaf_jax.core.errors import SettingError
from lpaf_jax.core.ranges import demand, demand_choice, whole
from lpaf_jax.stages.base import Context, Description, Saved, Stage
from lpaf_jax.stages.finetune import FineTune

if TYPE_CHECKING:
    from flax import nnx

    from lpaf_jax.data import Encoded
    from lpaf_jax.models.functional import Forward, Params
    from lpaf_jax.stages.trainer import Trainer
    from lpaf_jax.tasks.inputs import Inputs
    from lpaf_jax.train import Loop, Loss, Objective


_FILE = arg(metavar="FILE", help_behavior_hint="(optional)")
_RANK = arg(metavar="INT", help_behavior_hint="(optional)")


SIDES = {"up": "output-side", "down": "input-side"}
"""The factors of a layer, by the name that an adapter of each has."""


class _Part(NamedTuple):
    """A part of the steps.

    Attributes:
        name: of its checkpoints.
        half: of `SIDES`, the adapters that it trains; None: all that can be trained.
        first, last: shares of the steps that it begins and ends at.
    """

    name: str
    half: str | None = None
    first: float = 0.0
    last: float = 1.0


def nothing_in_turn() -> SettingError:
    """Of adapters in turn where no layer has two."""
    return SettingError(
        ("lora_order",),
        "is in-turn, but no matrix becomes two factors, each with an adapter: leave it out",
    )


@dataclass(frozen=True)
class Tune(Stage):
    """Train the factors on the task, as they are."""

    leaves = "tuned"
    logs = "tune"
    shrinks = True

    tune_epochs: float = 1.0
    """Epochs of tuning after the factorization; 0 skips it."""
    tune_lr: float = 2e-4
    """Peak learning rate of tuning."""
    distil: float = 0.0
    """Weight of distillation from the fine-tuned model's predictions in the tuning loss."""
    distil_hidden: float = 0.0
    """Weight of distillation from the hidden states."""
    distil_attention: float = 0.0
    """Weight of distillation from the attention maps."""
    temperature: float = 1.0
    """Distillation temperature."""
    transfer: Annotated[Path | None, _FILE] = None
    """File of unlabelled texts, one per line or row (column `sentence`), to train on as well.
    The fine-tuned model labels them."""
    transfer_samples: int = 10_000
    """Maximum number of these texts."""
    lora: Annotated[int | None, _RANK] = None
    """Rank of adapters (LoRA) to train instead of the factors; they are merged at the end."""
    lora_alpha: float = 16.0
    """LoRA alpha: the output of the adapters is scaled by this divided by their rank."""
    lora_base: Literal["float", "nf4"] = "float"
    """Storage of the frozen matrices while adapters are trained: as they are, or 4-bit (QLoRA)."""
    lora_order: Literal["together", "in-turn"] = "together"
    """Adapters of the two factors of a layer: trained together, or in turn as in SVD-LLM, for half
    of the steps those of the output-side factors and then those of the input-side ones."""

    def __post_init__(self) -> None:
        given: Any = self.transfer
        if isinstance(given, str):  # from a recipe that is written down
            object.__setattr__(self, "transfer", Path(given))
        elif given is not None and not isinstance(given, Path):
            raise SettingError(("transfer",), f"is {given!r}, but must name a file")

    def check(self) -> None:
        """See `Stage.check`."""
        demand(self, "tune_lr", lambda x: 0 < x < 1, "in (0, 1)")
        demand(self, "temperature", lambda x: 0 < x < math.inf, "finite and more than 0")
        demand(self, "transfer_samples", whole(1), "a whole number, at least 1")
        demand(self, "lora", lambda x: x is None or whole(1)(x), "a whole number, at least 1")
        demand(self, "lora_alpha", lambda x: 0 < x < math.inf, "finite and more than 0")
        demand_choice(self, "lora_base", ("float", "nf4"))
        if self.lora is None and self.lora_base != "float":
            raise SettingError(("lora_base",), "needs adapters: add --lora and their rank")
        demand_choice(self, "lora_order", ("together", "in-turn"))
        if self.lora is None and self.lora_order != "together":
            raise SettingError(("lora_order",), "needs adapters: add --lora and their rank")
        if self.transfer is not None and not self.transfer.is_file():
            raise SettingError(("transfer",), f"is {self.transfer}, but there is no such file")
        for name in ("tune_epochs", "distil", "distil_hidden", "distil_attention"):
            demand(self, name, lambda x: 0 <= x < math.inf, "finite and at least 0")

    def check_inputs(self, inputs: "Inputs") -> None:
        """See `Stage.check_inputs`."""
        alone = inputs.spec.kind in ("classification", "regression") and not inputs.spec.pairs
        if self.transfer is not None and not alone:
            raise SettingError(
                ("transfer",), "adds single texts, but this task needs other inputs: leave it out"
            )

    @property
    def idle(self) -> bool:
        """Whether there is no epoch to train."""
        return self.tune_epochs == 0

    def run(self, context: Context) -> Saved:
        """Train the factors, and with them all that is not factorized; or adapters alone."""
        from lpaf_jax.checkpoints import load_model
        from lpaf_jax.checkpoints.adapter import adapter_tensors
        from lpaf_jax.models.lora import (
            add_adapters,
            merge_adapters,
            put_adapters,
            train_half,
            updates,
        )
        from lpaf_jax.stages.trainer import Trainer

        training = context.training
        final = load_model(context.before)
        if self.lora is not None:
            # Matrices that a step would round anyway are held so.
            narrow = None if training.dtype == "float32" else training.dtype
            scale = self.lora_alpha / self.lora
            chosen: Any = {"narrow": narrow, "four_bits": self.lora_base == "nf4"}
            add_adapters(final, self.lora, scale=scale, seed=training.seed, **chosen)
        parts = [_Part("tune")]
        if self.lora_order == "in-turn":
            if not any(path.endswith(".up") for path in updates(final)):
                raise nothing_in_turn()
            parts = [_Part("tune-up", "up", 0, 0.5), _Part("tune-down", "down", 0.5, 1)]
        data, taught = self._examples(context), None
        for part in parts:
            if part.half is not None:
                train_half(final, part.half)
                context.progress.say(f"adapters of the {SIDES[part.half]} factors")
            loop = self._loop(context, final, data)
            trainer = Trainer(training, loop, context.progress)
            taught = taught or self._distillation(context, trainer)
            self._train(context, final, part, loop, trainer, taught)
        if self.lora is None:
            return final, None
        # Into the matrices as they are on disk: those here may be held in a narrower dtype.
        found = updates(final)
        del final, taught
        whole = load_model(context.before)
        put_adapters(whole, found)
        tensors = adapter_tensors(whole)
        merge_adapters(whole)
        return whole, tensors

    def _train(
        self,
        context: Context,
        final: "nnx.Module",
        part: "_Part",
        loop: "Loop",
        trainer: "Trainer",
        taught: "tuple[Callable[[Loss], Loss], Objective, Params]",
    ) -> None:
        """Train what of `final` is trainable; the learning rate goes up and down for this part."""
        from lpaf_jax.core.processes import on_host
        from lpaf_jax.models import fixed_arrays, parameters, set_parameters
        from lpaf_jax.stages.trainer import optimizer_of
        from lpaf_jax.train import task_loss

        begun = round(part.first * loop.steps)
        until = max(begun + 1, round(part.last * loop.steps))
        optimizer, rate = optimizer_of(context.training, self.tune_lr, until - begun)
        by_teacher, objective, teacher = taught
        loss = by_teacher(task_loss(self._function(trainer, final), objective))
        fixed = teacher | fixed_arrays(final)
        checkpoints = context.checkpoints(part.name)
        state = trainer.run(
            loss,
            optimizer,
            parameters(final),
            fixed,
            checkpoints,
            rate,
            begun=begun,
            until=until,
        )
        # A part may end where nothing is validated, and the next one stands on it.
        checkpoints.save_if_due(state, now=True)
        checkpoints.close()
        set_parameters(final, on_host(state.params))

    def describe(self, found: Mapping[str, Any]) -> Description:
        """See `Stage.describe`."""
        if self.lora is not None:
            bits = (
                ("The frozen matrices are stored in 4 bits per weight meanwhile. ")
                if self.lora_base == "nf4"
                else ""
            )
            turns = (
                "Those of the output-side factors are trained first, then the others. "
                if self.lora_order == "in-turn"
                else ""
            )
            return Description(
                "Tuned",
                "Tuning adapters",
                f"Adapters of rank {self.lora} are trained beside the matrices or their factors; "
                f"all other weights are frozen. {turns}{bits}{self._teacher()}At the end the "
                "adapters are merged.",
                f"Adapters (LoRA, rank {self.lora}) were then trained and merged.",
            )
        if not found["factors"]:
            return Description(
                "Tuned",
                "Tuning",
                f"The remaining parameters are trained. {self._teacher()}",
                "The remaining parameters were then tuned.",
            )
        return Description(
            "Tuned",
            "Tuning the factors",
            "All parameters are trained, with the factors in place of the original matrices. "
            f"{self._teacher()}The original matrices are not saved.",
            "Then all parameters were tuned.",
        )

    def _teacher(self) -> str:
        """What is learnt from the fine-tuned model, in a sentence."""
        weighed = {
            "answers": self.distil,
            "hidden states": self.distil_hidden,
            "attention": self.distil_attention,
        }
        *most, last = [name for name, weight in weighed.items() if weight > 0] or [""]
        learnt = f"{', '.join(most)} and {last}" if most else last
        text = f"They also learn from the dense model's {learnt}. " if learnt else ""
        if self.transfer is not None:
            text += (
                "Unlabelled texts, labelled by the dense model, are added to the training data. "
            )
        return text

    def _loop(self, context: Context, final: "nnx.Module", data: "Encoded") -> "Loop":
        """What does not change while `final` is trained."""
        from lpaf_jax.stages.trainer import loop_of

        told = context.progress.validation
        return loop_of(
            context.log,
            context.training,
            context.inputs,
            self.tune_epochs,
            final,
            data,
            on_batch=told,
        )

    def _examples(self, context: Context) -> "Encoded":
        """What is trained on."""
        if self.transfer is None:
            return context.inputs.train
        from lpaf_jax.stages.transfer import with_transfer

        dense = context.last(FineTune)
        assert dense is not None, "a recipe begins with fine-tuning"
        return with_transfer(context, self.transfer, self.transfer_samples, dense.folder)

    def _function(self, trainer: "Trainer", model: "nnx.Module") -> "Forward":
        """The model, with what of it is compared with the dense one."""
        hidden, maps = self.distil_hidden > 0, self.distil_attention > 0
        return trainer.function(model, hidden=hidden, maps=maps)

    def _distillation(
        self, context: Context, trainer: "Trainer"
    ) -> "tuple[Callable[[Loss], Loss], Objective, Params]":
        """A wrapper, an objective and parameters that make a loss learn from the dense model.

        With no weight on it they change nothing.
        """
        from lpaf_jax.checkpoints import load_model
        from lpaf_jax.models import parameters
        from lpaf_jax.train import distilled, teacher_parameters, with_teacher

        objective = context.inputs.kind.objective
        if self.distil == self.distil_hidden == self.distil_attention == 0:
            return lambda loss: loss, objective, {}
        dense = context.last(FineTune)
        assert dense is not None, "a recipe begins with fine-tuning"
        model = load_model(dense.folder)
        forward = self._function(trainer, model)
        learnt = distilled(
            objective,
            self.distil,
            temperature=self.temperature,
            hidden=self.distil_hidden,
            maps=self.distil_attention,
        )
        fixed = teacher_parameters(parameters(model))
        return lambda loss: with_teacher(loss, forward), learnt, fixed
