"""What ranks a factorization comes to, in words, before any work is done."""

from typing import TYPE_CHECKING

from lpaf_jax.factors import KINDS
from lpaf_jax.linalg import rank_for_ratio
from lpaf_jax.solvers import SOLVERS

if TYPE_CHECKING:
    from lpaf_jax.stages.factorize import Factorize
    from lpaf_jax.tasks.inputs import Inputs


def plan(stage: "Factorize", inputs: "Inputs") -> str:
    """See `Shrink.plan`."""
    table = "" if stage.embeddings is None else table_size(stage, table_of(inputs))
    if stage.ranks != "uniform":
        share = stage.share()
        assert share is not None
        kept = f"keeps {percent(share)} of the compressible weights"
        return f"{kept}, ranks by {stage.ranks}{table}"
    rank = one_rank(stage, inputs)
    kept = percent(share_of_rank(stage, rank, inputs))
    return f"rank {rank} everywhere, keeps {kept} of the compressible weights{table}"


def table_size(stage: "Factorize", shape: tuple[int, int]) -> str:
    """What the token embeddings, of that shape, are cut to, after a comma."""
    from lpaf_jax.factorization import table_record

    width = stage.embeddings
    assert width is not None
    if width >= 1:
        return f", token embeddings to a width of {width:g}"
    record = table_record(stage.embeddings_as, shape, width)
    rank = KINDS[record["kind"]].summary(record)
    return f", token embeddings to {percent(width)} of their parameters at most (rank {rank})"


def table_of(inputs: "Inputs") -> tuple[int, int]:
    """(V, H) of the token embeddings."""
    from lpaf_jax.checkpoints.checkpoint import shapes_of
    from lpaf_jax.checkpoints.contents import read_source

    language = inputs.spec.kind == "language"
    source = read_source(inputs.source, "lm" if language else None)
    rows, hidden = shapes_of(source)[f"{source.family.table}.weight"]
    return rows, hidden


def missed(stage: "Factorize", inputs: "Inputs") -> str | None:
    """See `Shrink.missed`."""
    asked = stage.share()
    reached = stage.planned(dict(zip(inputs.biases, inputs.shapes, strict=True)))
    if asked is None or reached is None or abs(reached - asked) <= 0.1 * asked:
        return None
    if stage.ranks != "uniform":
        come = (
            f"with whole ranks, the closest share is {percent(reached)} of the compressible weights"
        )
        return f"{percent(asked)} requested: {come}"
    rank = one_rank(stage, inputs)
    return (
        f"{percent(asked)} requested: one rank is {percent(share_of_rank(stage, 1, inputs))} "
        f"of the compressible weights, so rank {rank} is the "
        + ("smallest possible" if reached > asked else "largest that fits")
    )


def one_rank(stage: "Factorize", inputs: "Inputs") -> int:
    """The rank of all factorizations where it is one, from `rank` or from the share."""
    share = stage.share()
    if share is None:
        assert stage.rank is not None
        return stage.rank
    return rank_for_ratio(_ranked(stage, inputs), share)


def share_of_rank(stage: "Factorize", rank: int, inputs: "Inputs") -> float:
    """`k Σ(m + n) / Σ m n`: what factors of rank k hold, as a share of the matrices' numbers."""
    shapes = _ranked(stage, inputs)
    return rank * sum(map(sum, shapes)) / sum(m * n for m, n in shapes)


def percent(share: float) -> str:
    """A share as percent, to a tenth; below one percent, to two digits."""
    return f"{100 * share:.1f} %" if share >= 0.01 else f"{100 * share:.2g} %"


def _ranked(stage: "Factorize", inputs: "Inputs") -> list[tuple[int, int]]:
    """The shapes of the matrices whose ranks are chosen; see `Solver.ranked`."""
    return [SOLVERS[stage.solver].ranked(shape) for shape in inputs.shapes]
