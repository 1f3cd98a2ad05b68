"""Mixed-rank fine-tuning: the factors take the place of what was factorized little by little."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lpaf_jax.core.errors import SettingError
from lpaf_jax.core.ranges import demand, demand_choice
from lpaf_jax.stages.base import Context, Description, Saved
from lpaf_jax.stages.factorize import Factorize
from lpaf_jax.stages.finetune import FineTune
from lpaf_jax.stages.tune import Tune

if TYPE_CHECKING:
    from flax import nnx

    from lpaf_jax.train import Loss, TrainState


_MIXED = {
    "factorized": "the matrix that was factorized",
    "finetuned": "its matrix in the fine-tuned model",
}


@dataclass(frozen=True)
class MixedTune(Tune):
    """Mixed-rank fine-tuning with dual-forward consistency (step 3 of LPAF)."""

    p_init: float = 0.5
    """Probability of the dense branch at the start of mixed-rank fine-tuning."""
    p_end: float = 0.7
    """Share of the steps after which that probability is 0."""
    consistency: float = 1.0
    """Weight of the consistency loss between two forward passes."""
    mix_with: Literal["factorized", "finetuned"] = "factorized"
    """Matrices to mix with the factors: those that were factorized (pruned), or the fine-tuned
    ones."""

    def check(self) -> None:
        """See `Stage.check`."""
        super().check()
        for name in ("p_init", "p_end"):
            demand(self, name, lambda x: 0 <= x <= 1, "in [0, 1]")
        demand(self, "consistency", lambda x: 0 <= x < math.inf, "finite and at least 0")
        demand_choice(self, "mix_with", ("factorized", "finetuned"))
        if self.lora is not None:
            raise SettingError(
                ("lora",),
                "trains only adapters, but this recipe mixes the factors with the original "
                "matrices: use a recipe that does not, such as kfac-svd",
            )

    def run(self, context: Context) -> Saved:
        """Mix the factorized layers with those that they came from, less and less."""
        from lpaf_jax.checkpoints import load_model
        from lpaf_jax.core.processes import on_host
        from lpaf_jax.models import fixed_arrays, mixed_paths, parameters, set_parameters
        from lpaf_jax.stages.trainer import Trainer, optimizer_of
        from lpaf_jax.train import dual_loss, linear_replacement

        training = context.training
        final = load_model(context.before)
        loop = self._loop(context, final, self._examples(context))
        optimizer, rate = optimizer_of(training, self.tune_lr, loop.steps)
        trainer = Trainer(training, loop, context.progress)
        taught, objective, fixed = self._distillation(context, trainer)

        def loss_of(model: "nnx.Module") -> "Loss":
            forward = self._function(trainer, model)
            layers = len(mixed_paths(model))
            return taught(dual_loss(forward, probability, layers, self.consistency, objective))

        mixed_steps = round(self.p_end * loop.steps) if self.p_init > 0 else 0
        probability = linear_replacement(mixed_steps, self.p_init)
        after = context.checkpoints("tune-factors")
        start = after.restore(trainer.fresh(parameters(final), optimizer))
        if mixed_steps > 0 and int(start.step) == 0:
            mixed = self._mixed_model(context, final)
            # Validation looks at what will remain: the factors alone.
            state = trainer.run(
                loss_of(mixed),
                optimizer,
                parameters(mixed),
                fixed | fixed_arrays(mixed),
                context.checkpoints("tune-mixed"),
                rate,
                until=mixed_steps,
            )
            start = _keep_parameters(state, list(parameters(final)))
            after.save_if_due(start, now=True)
        state = trainer.go_on(loss_of(final), optimizer, start, fixed, after, rate)
        set_parameters(final, on_host(state.params))
        return final, None

    def _mixed_model(self, context: Context, final: "nnx.Module") -> "nnx.Module":
        """The model before the factorization, its layers mixed with the factors of `final`."""
        from lpaf_jax.checkpoints import load_model
        from lpaf_jax.factorization import low_rank_factors, take_embeddings, to_mixed
        from lpaf_jax.models import parameters, set_parameters
        from lpaf_jax.stages.prune import pruning_arrays

        folder = context.before_last(Factorize)
        model, masks = load_model(folder), pruning_arrays(folder).masks
        factors = low_rank_factors(final)
        if self.mix_with == "finetuned":
            dense = context.last(FineTune)
            assert dense is not None, "a recipe begins with fine-tuning"
            whole = parameters(load_model(dense.folder))
            set_parameters(model, {path: whole[path] for path in factors})
            masks = {}
        to_mixed(model, factors, masks)
        take_embeddings(model, final)
        set_parameters(model, parameters(final))  # all but the matrices that it has no more
        return model

    def describe(self, found: Mapping[str, Any]) -> Description:
        """See `Stage.describe`."""
        text = (
            "Mixed-rank fine-tuning: in every training step, each factorized layer uses "
            f"{_MIXED[self.mix_with]} instead of its factors with probability p, which falls to "
            f"zero. {self._teacher()}The original matrices are not saved."
        )
        return super().describe(found)._replace(text=text)


def _keep_parameters(state: "TrainState", names: list[str]) -> "TrainState":
    """The state of a model that keeps the parameters `names` only, moments included."""
    import jax

    full = set(state.params)

    def is_params(x: Any) -> bool:
        return isinstance(x, dict) and set(x) == full

    def keep(x: Any) -> Any:
        return {name: x[name] for name in names} if is_params(x) else x

    return jax.tree.map(keep, state, is_leaf=is_params)
