"""Structured pruning as an optimiser stage: adapters learn while gates of groups go to 0."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lpaf_jax.linalg.arithmetic import matmul
from lpaf_jax.models.functional import Params
from lpaf_jax.models.groups import Groups
from lpaf_jax.train.schedules import cubic_sparsity

GroupCriterion = Literal["lora", "gates", "random"]
# What importance keeps of itself from step to step, as in LoRAPrune.
_DECAY = 0.9


class GroupState(NamedTuple):
    """State of `prune_groups`.

    Attributes:
        step: updates made so far.
        importance: a running mean for each group, by the path of the layer that takes them.
        masks: which groups are left, booleans, likewise.
        inner: state of the inner optimiser, which acts on adapters.
    """

    step: Array
    importance: Params
    masks: Params
    inner: Any


def prune_groups(
    inner: optax.GradientTransformation,
    groups: Sequence[Groups],
    left: Mapping[str, int],
    scale: float,
    *,
    steps: int,
    start: int,
    cooldown: int,
    criterion: GroupCriterion = "lora",
    mask_every: int = 10,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Train adapters, and mask ever more groups of every layer, those of least importance.

    With A and B the adapter beside a matrix W, and ∇A and ∇B their gradients, each matrix gives a
    group the sum over its entries of

        |(A ∇B + ∇A B) ∘ (W + s A B)|        lora: LoRAPrune; no gradient of W is made
        |∂L/∂g|                              gates: what the loss says of the gate g of the group
        u ~ U(0, 1), drawn once              random: a control

    the first one over the norm of these sums over all groups, and added up over its matrices. The
    importance is a running mean of that, `I ← 0.9 I + 0.1 G`. From `start` on the number of groups
    that are masked grows along a cubic to its end, `cooldown` steps before the last one. What is
    masked stays masked.

    Args:
        inner: any optimiser of adapters.
        groups: that may be masked.
        left: how many are left at the end, by the path of the layer that takes them.
        scale: s.
        steps, start, cooldown: see `lpaf_jax.train.schedules.cubic_sparsity`.
        criterion: what importance is taken from.
        mask_every: steps between two updates of the masks; they are also updated where the
            schedule ends, so that what is left at the end is met exactly.
        seed: of `random`.

    Returns:
        a transformation of adapters and gates. `update` is given `fixed`, where W is.

    Cost: for `lora` `6 r m n` FLOP a matrix and step, and its m × n numbers once.

    Raises:
        ValueError: the criterion is unknown.

    Source: Zhang et al., "LoRAPrune: structured pruning meets low-rank parameter-efficient
    fine-tuning" (2024), after its code, where it differs from the paper (absolute values, not
    squares). Left out is the step `− ∇A ∇B`, which hangs on the scale of the loss; its code ends
    short of the target, as it masks only while the schedule is under way. Gates: Michel et al.,
    "Are sixteen heads really better than one?" (2019).
    """
    if criterion not in get_args(GroupCriterion):
        known = ", ".join(get_args(GroupCriterion))
        raise ValueError(f"prune_groups: criterion is {criterion!r}: choose one of {known}")
    counts = {each.out: each.total for each in groups}
    going = cubic_sparsity(steps, start, cooldown, 0.0)
    end = max(steps - cooldown, 1)

    def init(params: Params) -> GroupState:
        return GroupState(
            step=jnp.zeros((), jnp.int32),
            importance={path: jnp.zeros(count) for path, count in counts.items()},
            masks={path: jnp.ones(count, bool) for path, count in counts.items()},
            inner=inner.init(_adapters(params)),
        )

    def update(
        grads: Params, state: GroupState, params: Params | None = None, *, fixed: Params, **_: Any
    ) -> tuple[Params, GroupState]:
        assert params is not None
        own = _adapters(params)
        updates, inner_state = inner.update(_adapters(grads), state.inner, own)
        importance, masks = {}, {}
        step = state.step + 1
        due = (step % mask_every == 0) | (step == end)
        for each in groups:
            path, count = each.out, each.total
            if criterion == "lora":
                found = _by_adapters(each, own, grads, fixed, scale)
            elif criterion == "gates":
                found = jnp.abs(grads[f"{path}.lora_gate"])
            else:
                found = jax.random.uniform(_key(seed, path), (count,))
            importance[path] = _DECAY * state.importance[path] + (1 - _DECAY) * found
            gone = jnp.floor((1 - going(step)) * (count - left[path])).astype(jnp.int32)
            # Ranked with those that are masked last.
            value = jnp.where(state.masks[path], importance[path], -1.0)
            rank = jnp.argsort(jnp.argsort(-value))
            masks[path] = jnp.where(due, rank < count - gone, state.masks[path])
            gate = params[f"{path}.lora_gate"]
            updates[f"{path}.lora_gate"] = masks[path].astype(gate.dtype) - gate
        return updates, GroupState(step, importance, masks, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _key(seed: int, path: str) -> Array:
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))


def _adapters(tree: Params) -> Params:
    return {path: x for path, x in tree.items() if not path.endswith(".lora_gate")}


def _by_adapters(
    groups: Groups, params: Params, grads: Params, fixed: Params, scale: float
) -> Array:
    """The sums over groups that are described above, of all matrices of the groups."""
    total = jnp.zeros(groups.total)
    for path in (*groups.into, groups.out):
        a, b = (params[f"{path}.lora_{side}"] for side in "ab")
        to_a, to_b = (grads[f"{path}.lora_{side}"] for side in "ab")
        weight = fixed[f"{path}.base.kernel"].astype(a.dtype) + scale * matmul(a, b)
        product = jnp.abs((matmul(a, to_b) + matmul(to_a, b)) * weight)
        sums = jnp.sum(product, axis=1 if path == groups.out else 0)
        each = jnp.sum(sums.reshape(groups.total, -1), axis=1)
        norm = jnp.linalg.norm(each)
        total += each / jnp.where(norm > 0, norm, 1)
    return total


def left_of(state: Any) -> dict[str, Array]:
    """The masks in the state of an optimiser that `prune_groups` is or is a part of."""
    found = [
        each
        for each in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, GroupState))
        if isinstance(each, GroupState)
    ]
    return dict(found[0].masks)
