"""Pruning as an optimiser stage: dense weights, scores and masks live in its state."""

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lpaf_jax.importance import FIRST_ORDER
from lpaf_jax.train.schedules import Schedule
from lpaf_jax.train.select import MOST, count_of, keep_largest

Criterion = Literal["first-order", "sensitivity", "magnitude"]
Scope = Literal["global", "matrix"]


class PruneState(NamedTuple):
    """State of `prune`.

    Attributes:
        step: updates made so far.
        dense: the dense W behind every pruned parameter; `optax.MaskedNode` elsewhere.
        scores: the accumulated S, like `dense`.
        masks: M, booleans, like `dense`.
        inner: state of the inner optimiser, which acts on the dense weights.
    """

    step: Array
    dense: Any
    scores: Any
    masks: Any
    inner: Any


def prune(
    inner: optax.GradientTransformation,
    kept: Schedule | float,
    compressible: Any | Callable[[Any], Any],
    *,
    criterion: Criterion = "sensitivity",
    scope: Scope = "global",
    mask_every: int = 10,
    decay: float | None = None,
) -> optax.GradientTransformation:
    """Prune while training: the parameters are always `M ⊙ W`.

    At every step, with g the gradient at the masked weights (straight through, so that a masked
    weight can come back),

        W ← W + inner(g, W)
        S ← S − g ⊙ W     first-order: movement pruning, as the paper writes it
        S ← S + |g ⊙ W|   sensitivity: the same products without their sign
        S = |W|           magnitude: the zeroth-order baseline

    and after t steps M keeps the top `kept(t)` share of weights by S, their number exact to one.
    The update returned is `M ⊙ W − params`; a training loop needs no other hook than
    `optax.apply_updates`. Adding it gives masked entries exactly 0, and the others W to rounding.
    Parameters that are not compressible get the update of `inner` as it is.

    Args:
        inner: any optimiser; it sees the dense weights as its parameters.
        kept: schedule of the share of weights kept, or one share for all steps. Before the first
            step all are kept.
        compressible: tree of booleans like the parameters, or a function of them that gives it.
        criterion: which S. The paper's is "first-order", which took every model here to chance:
            see `lpaf_jax.importance.score`.
        scope: the top share is taken over all matrices together, or of each matrix.
        mask_every: steps between updates of the masks. They are also updated at the step where
            the schedule comes to rest, so the share it ends at is met exactly.
        decay: factor on S at each step; None sums without forgetting, as in the paper.

    Raises:
        TypeError: `kept` is neither a schedule nor a number.
        ValueError: an argument is unknown or out of range; `update` is called without the
            parameters; or `init` with more than 2³¹ − 1 weights under one threshold.

    Cost: a mask update reads the scores 18 times; dense W, S and M take nine bytes a weight.
    `update` is meant to run under `jax.jit`, as part of a training step: eagerly, each of its many
    small operations is sent off by itself.

    Source: Sanh et al., "Movement pruning", 2020; Ren & Zhu, LPAF, 2024; for the sensitivity,
    Molchanov et al., "Pruning convolutional neural networks for resource efficient inference",
    2017. The paper does not say over what set the top share is taken nor how often: `scope` and
    `mask_every` are ours.
    """
    share = _schedule_of(kept)
    _check_choices(criterion, scope, mask_every, decay)

    def chosen(params: Any) -> Any:
        return compressible(params) if callable(compressible) else compressible

    def init(params: Any) -> PruneState:
        where = chosen(params)
        dense = _only(where, params)
        _check_sizes([w.size for w in jax.tree.leaves(dense)], scope)
        return PruneState(
            step=jnp.zeros((), jnp.int32),
            # A copy: the parameters may be donated to the step that also carries this state.
            dense=jax.tree.map(jnp.copy, dense),
            scores=jax.tree.map(jnp.zeros_like, dense),
            masks=jax.tree.map(lambda w: jnp.ones(w.shape, bool), dense),
            inner=inner.init(params),
        )

    def is_due(step: Array) -> Array:
        before = jnp.where(step == 1, 1.0, share(step - 1))
        rests = (before > share(step)) & (share(step) == share(step + 1))
        return (step % mask_every == 0) | rests

    def update(grads: Any, state: PruneState, params: Any = None) -> tuple[Any, PruneState]:
        if params is None:
            raise ValueError("prune: call update(grads, state, params), with the parameters")
        where = chosen(params)
        weights = jax.tree.map(lambda c, w, p: w if c else p, where, state.dense, params)
        updates, inner_state = inner.update(grads, state.inner, weights)
        dense = _only(where, optax.apply_updates(weights, updates))
        if criterion == "magnitude":
            scores = jax.tree.map(jnp.abs, dense)
        else:
            forget = 1.0 if decay is None else decay
            scores = jax.tree.map(
                lambda s, g, w: FIRST_ORDER[criterion](forget * s, g, w),
                state.scores,
                _only(where, grads),
                state.dense,
            )
        step = state.step + 1
        masks = _renewed(state.masks, scores, share(step), is_due(step), scope)
        updates = jax.tree.map(
            lambda c, u, m, w, p: jnp.where(m, w, 0.0) - p if c else u,
            where,
            updates,
            masks,
            dense,
            params,
        )
        return updates, PruneState(step, dense, scores, masks, inner_state)

    return optax.GradientTransformation(init, update)


def _schedule_of(kept: Any) -> Schedule:
    if callable(kept):
        return kept
    if not isinstance(kept, Real):
        raise TypeError(f"prune: kept is {kept!r}, but must be a schedule or a number")
    share = float(kept)
    if not 0 <= share <= 1:
        raise ValueError(f"prune: kept is {share}, but must be in [0, 1]")
    return optax.constant_schedule(share)


def _check_choices(criterion: str, scope: str, mask_every: int, decay: float | None) -> None:
    for name, value, known in (("criterion", criterion, Criterion), ("scope", scope, Scope)):
        if value not in get_args(known):
            raise ValueError(
                f"prune: {name} is {value!r}: choose one of {', '.join(get_args(known))}"
            )
    if mask_every < 1:
        raise ValueError(f"prune: mask_every is {mask_every}, but must be at least 1")
    if decay is not None and not 0 < decay <= 1:
        raise ValueError(f"prune: decay is {decay}, but must be in (0, 1]")


def _only(where: Any, tree: Any) -> Any:
    return jax.tree.map(lambda c, x: x if c else optax.MaskedNode(), where, tree)


def _check_sizes(sizes: list[int], scope: Scope) -> None:
    most = sum(sizes) if scope == "global" else max(sizes, default=0)
    if most > MOST:
        mend = 'use scope="matrix"' if max(sizes) <= MOST else "split the largest matrix"
        raise ValueError(f"prune: {most:,} weights are too many for one threshold; {mend}")


# Compiled here for those who do not: eagerly, every step would trace and compile the branches anew.
@partial(jax.jit, static_argnames="scope", inline=True)
def _renewed(masks: Any, scores: Any, share: Array, due: Array, scope: Scope) -> Any:
    return jax.lax.cond(due, lambda: _top_share(scores, share, scope), lambda: masks)


def _top_share(scores: Any, share: Array, scope: Scope) -> Any:
    leaves, treedef = jax.tree.flatten(scores)
    groups = [leaves] if scope == "global" else [[leaf] for leaf in leaves]
    masks: list[Array] = []
    for group in groups:
        masks += keep_largest(group, count_of(share, sum(leaf.size for leaf in group)))
    return jax.tree.unflatten(treedef, masks)
