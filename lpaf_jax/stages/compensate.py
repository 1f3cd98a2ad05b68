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
    from lpaf_jax.models.functional import Params


@dataclass(frozen=True)
class Compensate(Factorize):
    """Factorize in several truncations, between which adapters (LoRA) learn the task.

    The matrices W are fixed. In each of J rounds adapters are trained beside them, W becomes the
    best approximation of `W + s A B` of a lower rank, and new adapters begin at 0. In training
    nothing has a gradient or a state of the optimiser but adapters.

    The share of the numbers that factors of that rank would have falls along a cubic, as that of
    weights in gradual pruning (Zhu & Gupta, 2017), from 1: the first truncation already takes about
    half of the rank of a square matrix, the directions of least weight.
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

    def shares(self) -> list[float]:
        """What share of the numbers each truncation keeps: `p + (1 − p)(1 − j/J)³`, j from 1."""
        last, count = self.share(), self.truncations
        assert last is not None
        return [last + (1 - last) * (1 - j / count) ** 3 for j in range(1, count + 1)]

    def run(self, context: Context) -> Saved:
        """Train adapters and truncate in turn, from the last truncation that is on disk."""
        import jax.numpy as jnp
        import optax
        from flax import nnx

        from lpaf_jax.checkpoints import load_model
        from lpaf_jax.core.processes import on_host
        from lpaf_jax.factorization import factorize, to_factors
        from lpaf_jax.models import fixed_arrays, parameters, set_parameters
        from lpaf_jax.models.lora import add_adapters, merge_adapters
        from lpaf_jax.stages.trainer import Trainer, loop_of, optimizer_of
        from lpaf_jax.train import task_loss

        training, inputs = context.training, context.inputs
        model = load_model(context.before)
        scale = self.lora_alpha / self.lora

        def adapted(index: int) -> nnx.Module:
            found = nnx.clone(model)
            add_adapters(found, self.lora, scale=scale, seed=training.seed + index)
            return found

        first = adapted(0)
        told = context.progress.validation
        loop = loop_of(context.log, training, inputs, self.lora_epochs, first, on_batch=told)
        # Rounds of one length, so that one compiled step serves them all.
        each = max(1, loop.steps // self.truncations)
        loop = loop._replace(steps=each * self.truncations)
        trainer = Trainer(training, loop, context.progress)
        loss = task_loss(trainer.function(first), inputs.kind.objective)
        optimizer, rate = optimizer_of(training, self.lora_lr, each)
        matrices = context.checkpoints("compensate-matrices")
        with closing(matrices):
            # Biases, too: a solver may move them.
            kept = _layers(parameters(model))
            held = matrices.restore(trainer.fresh(kept, optax.identity()))
            begun = int(held.step) // each
            set_parameters(model, on_host(held.params))
            del kept, held
            for index, share in enumerate(self.shares()[begun:], begun):
                moved = adapted(index)
                state = trainer.fresh(parameters(moved), optimizer)
                state = state._replace(step=jnp.full_like(state.step, index * each))
                part = context.checkpoints(f"compensate-{index + 1}")

                def of_round(t: int, start: int = index * each) -> dict[str, float]:
                    return rate(t - start)

                state = trainer.go_on(
                    loss,
                    optimizer,
                    part.restore(state),
                    fixed_arrays(moved),
                    part,
                    of_round,
                    until=(index + 1) * each,
                )
                set_parameters(moved, on_host(state.params))
                merge_adapters(moved)
                subject = self.subject(moved, context)
                by_matrix = partial(context.progress.part, "factorize")
                found = factorize(subject, **(self.choices() | {"params": share}), told=by_matrix)
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
                now = trainer.fresh(_layers(params), optax.identity())
                step = jnp.full_like(now.step, (index + 1) * each)
                matrices.save_if_due(now._replace(step=step), now=True)
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


def _layers(params: "Params") -> "Params":
    """Matrices and biases of the layers that are factorized, by path."""
    from lpaf_jax.models import compressible_layers

    layers = set(compressible_layers(params))
    return {path: x for path, x in params.items() if path.rpartition(".")[0] in layers}
