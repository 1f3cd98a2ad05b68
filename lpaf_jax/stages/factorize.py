"""Stage `factorized`: every compressible matrix becomes a product of two thin ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from lpaf_jax.core.errors import SettingError
from lpaf_jax.core.ranges import demand, whole
from lpaf_jax.stages.base import Context, Description, Saved
from lpaf_jax.stages.prune import Prune, Pruned, pruning_arrays
from lpaf_jax.stages.shrink import Shrink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flax import nnx

    from lpaf_jax.importance import Subject
    from lpaf_jax.models.functional import Batch
    from lpaf_jax.tasks.inputs import Inputs

_INT = arg(metavar="INT", help_behavior_hint="(optional)")
_NAME = arg(metavar="NAME")
_WIDTH = arg(metavar="FLOAT", help_behavior_hint="(optional)")


@dataclass(frozen=True)
class Factorize(Shrink):
    """Replace every compressible matrix by factors: an importance, a solver and a rank rule."""

    rank: Annotated[int | None, _INT] = None
    """Rank of every factorized matrix, instead of --params."""
    importance: Annotated[str, _NAME] = "score"
    """Importance that weights the factorization error; `lpaf recipes` lists all."""
    solver: Annotated[str, _NAME] = "row"
    """Solver of the weighted factorization; `lpaf recipes` lists all."""
    ranks: Annotated[str, _NAME] = "uniform"
    """Rule that sets the rank of each matrix; `lpaf recipes` lists all."""
    floor: float = 0.1
    """Minimum importance of every entry, as a share of the mean."""
    ridge: float = 0.0
    """Weight of the squared norm of the factors in the element-wise objective."""
    channels: Literal["none", "feed-forward", "all"] = "none"
    """Layers that lose channels instead of being factorized; `all` adds the attention values.
    Only for a decoder without a task."""
    channels_by: Literal["loss", "norms"] = "loss"
    """Channels to drop: those that raise the loss least, with the others adjusted to compensate;
    or those of smallest norm (except the smallest hundredth), without compensation."""
    pruned_to: float = 1.0
    """Share of each matrix's weights that SparseGPT keeps before the factorization.
    Only for a decoder without a task."""
    multiple_of: int = 1
    """Make ranks (except a uniform one) and channel counts a multiple of this, such as 8 or 64."""
    least: float = 0.0
    """Minimum share of its parameters that every matrix keeps when ranks are set by the loss."""
    embeddings: Annotated[float | None, _WIDTH] = None
    """Width E of factorized token embeddings, a V × E table and an E × H matrix;
    below 1, the share of the embedding parameters to keep. --params does not count these."""
    embeddings_as: Literal["low-rank", "kronecker", "kronecker-sums", "trains"] = "low-rank"
    """Form of the compressed token embeddings: two matrices, one Kronecker product
    (a V × H/f table and a row of f), a sum of Kronecker products of two smaller tables, or one
    tensor train per token. All but the first need a share below 1, and ignore a head that is
    tied to the embeddings."""
    moment_batches: int = 40
    """Batches of training data used to estimate moments and Fisher information."""
    block_epochs: int = 0
    """Epochs of tuning each block after its factorization; only for a decoder without a task."""
    block_lr: float = 1e-4
    """Learning rate for tuning each block."""

    def share(self, trained: bool = True) -> float | None:
        """See `Shrink.share`; None where a rank is chosen."""
        return super().share(trained) if self.rank is None else self.params

    def choices(self, trained: bool = True) -> dict[str, Any]:
        """What `lpaf_jax.factorization.factorize` and `Plan` take."""
        names = ("importance", "solver", "ranks", "rank", "floor", "ridge", "multiple_of", "least")
        return {n: getattr(self, n) for n in names} | {"params": self.share(trained)}

    def check(self) -> None:
        """See `Stage.check`."""
        from lpaf_jax.core.ranges import demand_choice
        from lpaf_jax.factorization import FORMS
        from lpaf_jax.importance import IMPORTANCES
        from lpaf_jax.ranks import RANK_RULES
        from lpaf_jax.solvers import SOLVERS, check_pair

        demand_choice(self, "importance", IMPORTANCES)
        demand_choice(self, "solver", SOLVERS)
        demand_choice(self, "ranks", RANK_RULES)
        demand_choice(self, "channels", ("none", "feed-forward", "all"))
        if self.channels != "none" and self.rank is not None:
            raise SettingError(
                ("rank",),
                "does not set the number of channels: use --params instead, or a recipe that "
                "keeps all channels, such as drone",
            )
        if not RANK_RULES[self.ranks].factorizes and self.channels == "none":
            raise SettingError(
                ("ranks",), f"{self.ranks!r} only drops channels: add --channels feed-forward"
            )
        demand_choice(self, "channels_by", ("loss", "norms"))
        if self.channels_by == "norms":
            self._check_norms(RANK_RULES[self.ranks].needs_spectra)
        super().check()
        demand(
            self,
            "embeddings",
            lambda x: x is None or 0 < x < 1 or (1 <= x < math.inf and x == int(x)),
            "a whole number, or a share in (0, 1)",
        )
        demand_choice(self, "embeddings_as", FORMS)
        if self.embeddings is None and self.embeddings_as != "low-rank":
            raise SettingError(
                ("embeddings_as",), "needs --embeddings with the share of their parameters to keep"
            )
        demand(self, "pruned_to", lambda x: 0 < x <= 1, "in (0, 1]")
        for name in ("floor", "ridge"):
            demand(self, name, lambda x: 0 <= x < math.inf, "finite and at least 0")
        if self.rank is not None:
            demand(self, "rank", whole(1), "a whole number, at least 1")
        demand(self, "block_epochs", whole(0), "a whole number, at least 0")
        demand(self, "block_lr", lambda x: 0 < x < math.inf, "finite and above 0")
        demand(self, "least", lambda x: 0 <= x < 1, "in [0, 1)")
        for name in ("multiple_of", "moment_batches"):
            demand(self, name, whole(1), "a whole number, at least 1")
        if self.rank is not None and self.ranks != "uniform":
            raise SettingError(
                ("rank",),
                f"sets one rank for all matrices, but --ranks {self.ranks} gives each its own: "
                "add --ranks uniform, or use --params",
            )
        if self.params is not None and self.rank is not None:
            raise SettingError(("params", "rank"), "both set the rank: leave one out")
        check_pair(IMPORTANCES[self.importance], SOLVERS[self.solver], self.ridge)
        if RANK_RULES[self.ranks].needs_spectra and not self.low_rank:
            raise SettingError(
                ("ranks", "solver"),
                f"{self.ranks!r} cannot judge what solver {self.solver} makes: use --ranks share",
            )

    @property
    def factors(self) -> bool:
        """See `Shrink.factors`."""
        from lpaf_jax.ranks import RANK_RULES

        return RANK_RULES[self.ranks].factorizes

    @property
    def low_rank(self) -> bool:
        """Whether the factors are two thin matrices, and no other form."""
        from lpaf_jax.solvers import PRODUCT, SOLVERS

        return SOLVERS[self.solver].form is PRODUCT

    def _check_norms(self, by_the_loss: bool) -> None:
        if self.channels != "feed-forward":
            raise SettingError(
                ("channels_by",),
                "'norms' works only for feed-forward channels: add --channels feed-forward",
            )
        if by_the_loss:
            raise SettingError(
                ("channels_by", "ranks"),
                f"{self.ranks!r} sets the number of channels by the rise of the loss, which "
                "'norms' does not measure: use --ranks share, or --channels-by loss",
            )

    def planned(self, shapes: Mapping[str, tuple[int, int]], trained: bool = True) -> float | None:
        """The share of the numbers that ranks come to; None where they wait for what data say.

        Args:
            shapes: (m, n) of the matrices, by the path of their layer.
            trained: see `share`.

        Raises:
            LpafError: there are no such ranks.
        """
        from lpaf_jax.ranks import RANK_RULES, choose_ranks
        from lpaf_jax.solvers import SOLVERS

        rule = RANK_RULES[self.ranks]
        rule.check(shapes)
        if rule.needs_spectra or self.channels != "none":
            return None
        ranked = {path: SOLVERS[self.solver].ranked(shape) for path, shape in shapes.items()}
        largest = min(map(min, ranked.values()))
        if self.rank is not None and self.rank > largest:
            raise SettingError(
                ("rank",), f"{self.rank} is more than {largest}, the largest possible rank"
            )
        share, step = self.share(trained), self.multiple_of
        found = choose_ranks(self.ranks, ranked, params=share, rank=self.rank, multiple_of=step)
        sizes = {path: m * n for path, (m, n) in ranked.items()}
        kept = sum(sizes[p] if k is None else k * sum(ranked[p]) for p, k in found.items())
        return kept / sum(sizes.values())

    def check_inputs(self, inputs: "Inputs") -> None:
        """See `Stage.check_inputs`."""
        from lpaf_jax.solvers import check_biases

        check_biases(self.solver, inputs.biases)
        self.planned(dict(zip(inputs.biases, inputs.shapes, strict=True)))
        if self.embeddings is None:
            return
        from lpaf_jax.factorization import table_record
        from lpaf_jax.stages import planned

        table_record(self.embeddings_as, planned.table_of(inputs), self.embeddings)

    def plan(self, inputs: "Inputs") -> str:
        """See `Shrink.plan`."""
        from lpaf_jax.stages import planned

        return planned.plan(self, inputs)

    def missed(self, inputs: "Inputs") -> str | None:
        """See `Shrink.missed`."""
        from lpaf_jax.stages import planned

        return planned.missed(self, inputs)

    def refuse_blocks(self, why: str) -> None:
        """Raise SettingError where what only a walk block by block can do is asked for."""
        from lpaf_jax.importance import IMPORTANCES

        only = "(given, or set by the recipe) works only for a decoder without a task"
        if self.block_epochs:
            raise SettingError(("block_epochs",), f"{only}: {why}")
        if self.pruned_to < 1:
            raise SettingError(
                ("pruned_to",),
                f"{only}: with a task, use a recipe with a pruning stage",
            )
        if self.channels != "none":
            raise SettingError(
                ("channels",),
                f"{self.channels!r} {only}: use a recipe that keeps all channels, such as drone, "
                "or a decoder with --calibration and without --task",
            )
        if "streams" in IMPORTANCES[self.importance].needs:
            raise SettingError(
                ("importance",),
                f"{self.importance!r} {only}, which is factorized block by block: use --importance "
                "activations --solver metric, the equivalent when all blocks are factorized at "
                "once",
            )

    def run(self, context: Context) -> Saved:
        """Factorize the model before it, weighted by what its data say of it."""
        from lpaf_jax.checkpoints import load_model
        from lpaf_jax.factorization import factorize, to_factors

        model = load_model(context.before)
        told = partial(context.progress.part, "factorize")
        solutions = factorize(self.subject(model, context), **self.choices(), told=told)
        to_factors(model, solutions)
        self.cut_table(model, context)
        return model, None

    def cut_table(self, model: Any, context: Context) -> None:
        """Factorize the token embeddings of `model`, if that is asked for."""
        from lpaf_jax.factorization import FORMS, factorize_embeddings, head_moment, token_counts
        from lpaf_jax.models import layer_at
        from lpaf_jax.models.families import FAMILIES

        if self.embeddings is None:
            return
        path = FAMILIES[context.inputs.family].table
        rows = layer_at(model, path).weight.shape[0]
        counts = token_counts(context.inputs.train.ids, rows)
        tied = context.inputs.spec.kind == "language" and model.lm_head is None
        form = self.embeddings_as
        looks = tied and FORMS[form].looks_at_head
        head = head_moment(model, self.subject(model, context).batches()) if looks else None
        factorize_embeddings(model, path, self.embeddings, counts, head, form)

    def subject(self, model: "nnx.Module", context: Context) -> "Subject":
        """The model with its data and what pruning left, as importances look at it."""
        from lpaf_jax.core.progress import counted
        from lpaf_jax.data import train_batches
        from lpaf_jax.importance import Subject
        from lpaf_jax.models import compressible, parameters

        pruned = context.last(Prune)
        left = Pruned({}, {}, {}) if pruned is None else pruning_arrays(pruned.folder)
        inputs, training = context.inputs, context.training

        def first_batches(count: int | None = self.moment_batches) -> "Iterator[Batch]":
            found = train_batches(inputs.train, training.batch, seed=training.seed, epoch=0)
            return counted(found[:count], partial(context.progress.part, "factorize"))

        return Subject(
            model=model,
            weights=compressible(parameters(model)),
            scores=left.scores,
            masks=left.masks,
            second_moments=left.squares,
            batches=first_batches,
            loss=inputs.kind.objective.loss,
            divergence=inputs.kind.objective.divergence,
        )

    def describe(self, found: Mapping[str, Any]) -> Description:
        """See `Stage.describe`."""
        from lpaf_jax.stages import described

        return described.describe(self, found)
