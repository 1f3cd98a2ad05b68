"""What weighs the error of a factorization: the protocol of importances, and their registry."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.registry import Registry
from lpaf_jax.importance.activations import Moment, activation_moments
from lpaf_jax.linalg.scaling import exponent, to_unit
from lpaf_jax.models.functional import Batch, Params

Part = Literal["entries", "left", "right", "mean", "cross"]
Need = Literal["loss", "pruning", "inputs", "streams"]


class Weighting(NamedTuple):
    """What weighs the error E = W − AB of one matrix (m, n); where nothing does, all count alike.

    Attributes:
        entries: I, (m, n): `Σ_ij I_ij E_ij²`.
        left: L, (m,) or (m, m), and right: R, (n,) or (n, n): `tr L E R Eᵀ`.
        mean: E[x], (m,), of the inputs, for solvers that move the bias.
        cross: E[x̂ᵀx], (m, m), x̂ the inputs that L is of and x those in the dense model, for
            solvers that mend what was lost before; None where both are the same.
    """

    entries: Array | None = None
    left: Array | None = None
    right: Array | None = None
    mean: Array | None = None
    cross: Array | None = None


class Subject(NamedTuple):
    """What an importance may look at.

    Attributes:
        model: whose matrices are to be factorized.
        weights: W of all of them, by kernel path.
        scores, masks, second_moments: what pruning left: S, M and Adam's running mean of squared
            gradients; empty where nothing was pruned.
        batches: of the data, from the first one at each call; `batches(n)` gives n at most.
        loss: of outputs and batch, a mean over rows by weight; None where there is nothing to
            learn from.
        divergence: of two outputs and batch, how far answers are apart; None where nothing says so.
    """

    model: nnx.Module
    weights: Params
    scores: Params
    masks: Params
    second_moments: Params
    batches: Callable[..., Iterable[Batch]]
    loss: Callable[[Array, Batch], Array] | None
    divergence: Callable[[Array, Array, Batch], Array] | None = None


@dataclass(frozen=True)
class Importance:
    """A way to weigh the factorization of every matrix of a model.

    Attributes:
        name: by which it is registered.
        summary: what it does, on one line, to be read after "chosen": "to preserve ...".
        gives: the parts of a `Weighting` that it fills; none is plain SVD.
        needs: "loss", gradients of the task or of the next token; "pruning", what step 1 leaves;
            "inputs", the moments of what goes into each layer; "streams", those beside what goes
            into it in the dense model, which a decoder cut block by block has.
        of_model: what comes of the whole model, by kernel path.
        of_inputs: what the moments of a layer's inputs add. They are those of the model, or, where
            a decoder is cut block by block, those that the blocks before leave.
        source: paper and year, where there is one.
    """

    name: str
    summary: str
    gives: frozenset[Part] = frozenset()
    needs: frozenset[Need] = frozenset()
    of_model: Callable[[Subject], Mapping[str, Weighting]] | None = None
    of_inputs: Callable[[Weighting, Moment], Weighting] | None = None
    source: str = ""


IMPORTANCES: Registry[Importance] = Registry("importance", Importance)


def register_importance(importance: Importance) -> Importance:
    """Let recipes use an importance by its name."""
    return IMPORTANCES.register(importance)


def measure(importance: Importance, subject: Subject, floor: float = 0.0) -> dict[str, Weighting]:
    """The weighting of every matrix, by kernel path.

    Entries come out at mean 1, with the floor added. Where an importance leaves no entry at all
    above 0, they are 1: a matrix of which nothing is known is factorized unweighted.

    Args:
        importance: a registered one, or any other.
        subject: the model and its data.
        floor: added to every entry, as a share of the mean. Without one a factorization is free to
            be anything where I = 0, though a pruned entry should stay near 0.

    Raises:
        LpafError: something that the importance needs is not there.
    """
    found = of_model(importance, subject)
    if importance.of_inputs is not None:
        moments = activation_moments(subject.model, subject.batches())
        found = {
            path: importance.of_inputs(weighting, moments[path.removesuffix(".kernel")])
            for path, weighting in found.items()
        }
    return {path: with_floor(weighting, floor) for path, weighting in found.items()}


def of_model(importance: Importance, subject: Subject) -> dict[str, Weighting]:
    """What the whole model says, before the inputs of its layers are looked at.

    Raises:
        LpafError: something that the importance needs is not there.
    """
    if "loss" in importance.needs and subject.loss is None:
        raise LpafError(
            f"importance {importance.name} needs gradients: give a task with labels, or a decoder"
        )
    if "pruning" in importance.needs and not subject.masks:
        raise LpafError(
            f"importance {importance.name} comes from pruning: use a recipe that prunes, such as "
            "lpaf"
        )
    if importance.of_model is None:
        return {path: Weighting() for path in subject.weights}
    return dict(importance.of_model(subject))


def with_floor(weighting: Weighting, floor: float) -> Weighting:
    """Entries scaled to mean 1, plus the floor."""
    if weighting.entries is None:
        return weighting
    raw = weighting.entries
    raw = to_unit(raw, exponent(raw))  # the sum of large or small scores leaves float32
    mean = raw.mean()
    # Compared with 0, so that a NaN in the scores is not taken for their absence.
    entries = jnp.where(mean == 0, 1.0, raw / jnp.where(mean == 0, 1.0, mean)) + floor
    return weighting._replace(entries=entries)
