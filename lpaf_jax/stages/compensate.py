"""Stage `factorized`, while adapters make up for what is cut off."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lpaf_jax.core.errors import SettingError
from lpaf_jax.core.ranges import demand, whole
from lpaf_jax.stages.base import Context, Description, Saved, check_adapters
from lpaf_jax.stages.factorize import Factorize

if TYPE_CHECKING:
    from flax import nnx

    from lpaf_jax.models.functional import Params


@dataclass(frozen=True)
class Compensate(Factorize):
    """Factorize in several truncations, between which adapters (LoRA) learn the task.

    The matrices W are fixed. In each of J rounds adapters are trained beside them, W becomes the
    best approximation of `W + s A B` of a lower rank, and new adapters begin at 0. In training
    nothing has a gradient or a state of the optimiser but adapters.

    The rank of each matrix falls along a cubic, as the share of weights in gradual pruning (Zhu &
    Gupta, 2017), from full rank to k, what the rule of ranks gives for the matrices as they are
    then: after truncation j it is `k + (min(m, n) − k)(1 − j/J)³`.
    """

    logs = "compensate"

    lora: int = 8
    """Rank of the adapters (LoRA), in this stage and in tuning."""
    lora_alpha: float = 16.0
    """LoRA alpha: the output of the adapters is scaled by this divided by their rank."""
    lora_epochs: float = 1.0
    """Epochs of training adapters between truncations, in total."""
    lora_lr: float = 2e-4
    """Peak learning rate of the adapters in this stage; each round warms up again."""
    truncations: int = 10
    """Number of truncations; the last one gives the factors."""

    def check(self) -> None:
        """See `Stage.check`."""
        super().check()
        demand(self, "truncations", whole(1), "a whole number, at least 1")
        check_adapters(self, "lora")
        if self.rank is not None:
            raise SettingError(
                ("rank",), "does not set the ranks of the earlier truncations: use --params instead"
            )
        if not self.low_rank:
            raise SettingError(
                ("solver",),
                f"{self.solver!r} does not give two thin factors, which this recipe needs: use "
                "metric, row or plain",
            )

    def to_full(self) -> list[float]:
        """How far from k to full rank the ranks of each truncation are: `(1 − j/J)³`, j from 1."""
        return [(1 - j / self.truncations) ** 3 for j in range(1, self.truncations + 1)]

    def run(self, context: Context) -> Saved:
        """Train adapters and truncate in turn, from the last truncation that is on disk."""
        from lpaf_jax.checkpoints import load_model
        from lpaf_jax.factorization import factorize, to_factors
        from lpaf_jax.models import parameters, set_parameters
        from lpaf_jax.models.lora import merge_adapters

        model = load_model(context.before)
        rounds = _Rounds(self, context, model)
        with closing(rounds.matrices):
            begun = rounds.restore(model)
            for index, to_full in enumerate(self.to_full()[begun:], begun):
                moved = rounds.adapted(model, index)
                rounds.train(moved, index)
                merge_adapters(moved)
                subject = self.subject(moved, context)
                by_matrix = partial(context.progress.part, "factorize")
                found = factorize(subject, **self.choices(), to_full=to_full, told=by_matrix)
                if index + 1 == self.truncations:
                    to_factors(moved, found)
                    self.cut_table(moved, context)
                    return moved, None
                params = parameters(moved)
                for path, solution in found.items():
                    params[path] = solution.factors.dense()
                    if solution.bias is not None:
                        params[path.replace(".kernel", ".bias")] += solution.bias
                set_parameters(model, params)
                rounds.keep(params, index)
        raise AssertionError("the last truncation returns")

    def describe(self, found: Mapping[str, Any]) -> Description:
        """See `Stage.describe`."""
        usual = super().describe(found)
        text = (
            f"In each of {self.truncations} rounds, adapters (LoRA) of rank {self.lora} are "
            "trained beside the frozen matrices; then each matrix and its adapter are truncated "
            "together, to a rank that falls from round to round. After the last round: "
            f"{usual.text}"
        )
        card = usual.card.replace(
            "made smaller by", "made smaller, with adapters (LoRA) trained to compensate, by", 1
        )
        return usual._replace(phase="Factorizing with adapters", text=text, card=card)


class _Rounds:
    """Training between truncations: rounds of one length, so that one compiled step serves all.

    Attributes:
        matrices: checkpoints of what each truncation left.
    """

    def __init__(self, stage: Compensate, context: Context, model: "nnx.Module"):
        from lpaf_jax.stages.trainer import Trainer, loop_of, optimizer_of
        from lpaf_jax.train import task_loss

        training, inputs = context.training, context.inputs
        self._stage, self._context = stage, context
        first = self.adapted(model, 0)
        told = context.progress.validation
        loop = loop_of(context.log, training, inputs, stage.lora_epochs, first, on_batch=told)
        self._each = max(1, loop.steps // stage.truncations)
        loop = loop._replace(steps=self._each * stage.truncations)
        self._trainer = Trainer(training, loop, context.progress)
        self._loss = task_loss(self._trainer.function(first), inputs.kind.objective)
        self._optimizer, self._rate = optimizer_of(training, stage.lora_lr, self._each)
        self.matrices = context.checkpoints("compensate-matrices")

    def adapted(self, model: "nnx.Module", index: int) -> "nnx.Module":
        """A copy with new adapters, which begin at 0."""
        from flax import nnx

        from lpaf_jax.models.lora import add_adapters

        found, stage = nnx.clone(model), self._stage
        seed = self._context.training.seed + index
        add_adapters(found, stage.lora, scale=stage.lora_alpha / stage.lora, seed=seed)
        return found

    def restore(self, model: "nnx.Module") -> int:
        """Give `model` the matrices of the last truncation on disk; returns how many there were."""
        import optax

        from lpaf_jax.core.processes import on_host
        from lpaf_jax.models import parameters, set_parameters

        # Biases, too: a solver may move them.
        kept = _layers(parameters(model))
        held = self.matrices.restore(self._trainer.fresh(kept, optax.identity()))
        set_parameters(model, on_host(held.params))
        return int(held.step) // self._each

    def keep(self, params: "Params", index: int) -> None:
        """Save what truncation `index` left."""
        import jax.numpy as jnp
        import optax

        state = self._trainer.fresh(_layers(params), optax.identity())
        done = jnp.full_like(state.step, (index + 1) * self._each)
        self.matrices.save_if_due(state._replace(step=done), now=True)

    def train(self, moved: "nnx.Module", index: int) -> None:
        """Train the adapters of `moved` for a round, from its last checkpoint."""
        from lpaf_jax.core.processes import on_host
        from lpaf_jax.models import fixed_arrays, parameters, set_parameters

        begun = index * self._each
        part = self._context.checkpoints(f"compensate-{index + 1}")
        state = self._trainer.run(
            self._loss,
            self._optimizer,
            parameters(moved),
            fixed_arrays(moved),
            part,
            self._rate,
            begun=begun,
            until=begun + self._each,
        )
        set_parameters(moved, on_host(state.params))


def _layers(params: "Params") -> "Params":
    """Matrices and biases of the layers that are factorized, by path."""
    from lpaf_jax.models import compressible_layers

    layers = set(compressible_layers(params))
    return {path: x for path, x in params.items() if path.rpartition(".")[0] in layers}
