"""Losses over the outputs of a model, and what keeps two outputs close.

A task is an `Objective`: three functions of outputs and batch that training steps compose. `weight`
is 0 on rows that only pad a batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lpaf_jax.models.functional import Batch, Outputs

# A logit so low that it takes no share, and finite at any sensible temperature.
_NEVER = -1e30
TEACHER = "teacher"  # where a batch holds the outputs of the model to learn from


class Objective(NamedTuple):
    """What a head's outputs are held to.

    Attributes:
        loss: `(outputs, batch) -> mean loss` against the labels of the batch.
        divergence: `(first, second, batch) -> mean`, symmetric, 0 where two outputs agree.
        distance: `(student, teacher, batch, temperature) -> mean`: what distillation lowers.
    """

    loss: Callable[[Any, Batch], Array]
    divergence: Callable[[Any, Any, Batch], Array]
    distance: Callable[[Any, Any, Batch, float], Array]


def cross_entropy(logits: Array, labels: Array, weight: Array) -> Array:
    """Weighted mean of `−log softmax(logits)[label]` over the batch.

    Args:
        logits: (batch, labels). labels: (batch,) integers. weight: (batch,).
    """
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]
    return -_mean(chosen, weight)


def symmetric_kl(first: Array, second: Array, weight: Array) -> Array:
    """Weighted mean of `½ (KL(p‖q) + KL(q‖p))`, p and q the class probabilities of two passes.

    The two divergences together are `½ Σ (p − q)(log p − log q)`, which needs no entropy.

    Args:
        first, second: logits, (batch, labels). weight: (batch,).
    """
    log_p, log_q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    divergence = 0.5 * jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1)
    return _mean(divergence, weight)


def distillation_kl(student: Array, teacher: Array, weight: Array, temperature: float) -> Array:
    """Weighted mean of `T² KL(softmax(teacher / T) ‖ softmax(student / T))`.

    T² keeps the size of the gradient as the temperature grows.

    Args:
        student, teacher: logits, (batch, labels). weight: (batch,).

    Source: Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network" (2015).
    """
    log_p, log_q = (jax.nn.log_softmax(x / temperature) for x in (teacher, student))
    return temperature**2 * _mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), weight)


def squared_error(first: Array, second: Array, weight: Array) -> Array:
    """Weighted mean of `Σ (first − second)²` over what follows the batch axis."""
    return _mean(jnp.square(first - second).reshape(len(first), -1).sum(-1), weight)


CLASSIFICATION = Objective(
    lambda logits, batch: cross_entropy(logits, batch["labels"], batch["weight"]),
    lambda first, second, batch: symmetric_kl(first, second, batch["weight"]),
    lambda student, teacher, batch, t: distillation_kl(student, teacher, batch["weight"], t),
)
"""Logits (batch, classes) and integer `labels` (batch,)."""

REGRESSION = Objective(
    lambda out, batch: squared_error(out[:, 0], batch["labels"], batch["weight"]),
    lambda first, second, batch: squared_error(first, second, batch["weight"]),
    lambda student, teacher, batch, t: squared_error(student, teacher, batch["weight"]),
)
"""Outputs (batch, 1) and real `labels` (batch,). A temperature changes nothing."""


def _over_ends(term: Callable[[Array, Array, Array], Array]) -> Callable[..., Array]:
    """The mean of `term` over a span's start and end, with the padding out of the question.

    The padding of a batch depends on its longest text: were its logits to count, the loss of one
    example would depend on the others.
    """

    def mean(first: Array, second: Array, batch: Batch) -> Array:
        def at(end: int, x: Array) -> Array:
            if x.ndim == 2:  # positions
                return x[:, end]
            return jnp.where(batch["attention_mask"] > 0, x[..., end], _NEVER)

        parts = [term(at(end, first), at(end, second), batch["weight"]) for end in (0, 1)]
        return 0.5 * (parts[0] + parts[1])

    return mean


SPANS = Objective(
    lambda logits, batch: _over_ends(cross_entropy)(logits, batch["labels"], batch),
    lambda first, second, batch: _over_ends(symmetric_kl)(first, second, batch),
    lambda student, teacher, batch, t: _over_ends(
        lambda s, q, weight: distillation_kl(s, q, weight, t)
    )(student, teacher, batch),
)
"""Logits (batch, length, 2) of a span's start and end, and their positions `labels` (batch, 2)."""


def log_likelihood(logits: Array, batch: Batch) -> Array:
    """`Σ_t log p(x_t | x_<t)` of each row, (batch,), over the tokens whose `weight` is not 0.

    Nothing of the size of the logits is made beside them, here or on the way back: the logit of
    each token is found by comparing indices within the sum, as a gather has a gradient of its own
    of that size.

    Args:
        logits: (batch, length, vocabulary).
        batch: `input_ids`, `attention_mask`, and `weight` of rows, or of tokens.
    """
    return jnp.sum(_log_p(logits, batch["input_ids"]) * _counted(batch), axis=-1)


def _log_p(logits: Array, ids: Array) -> Array:
    """Of each token the log-probability of the one after it; of the last, of any."""
    logits = logits.astype(jnp.float32)
    following = jnp.roll(ids, -1, axis=1)[..., None]
    index = jax.lax.broadcasted_iota(ids.dtype, logits.shape, 2)
    chosen = jnp.sum(jnp.where(index == following, logits, 0), axis=-1)
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _counted(batch: Batch) -> Array:
    """What each place counts by the token after it, (batch, length); the last one has none."""
    mask, weight = batch["attention_mask"], batch["weight"]
    counted = (mask[:, 1:] * mask[:, :-1]).astype(jnp.float32)
    # `weight` is of rows, or of tokens where only some of a row's count.
    counted *= weight[:, None] if weight.ndim == 1 else weight[:, 1:]
    return jnp.pad(counted, ((0, 0), (0, 1)))


def _over_places(term: Callable[..., Array]) -> Callable[..., Array]:
    """The mean of `term` over all places of a batch that have a next token."""

    def mean(first: Array, second: Array, batch: Batch, *rest: float) -> Array:
        rows, others = (x.reshape(-1, x.shape[-1]) for x in (first, second))
        return term(rows, others, _counted(batch).reshape(-1), *rest)

    return mean


LANGUAGE = Objective(
    lambda logits, batch: -_mean(_log_p(logits, batch["input_ids"]), _counted(batch)),
    _over_places(symmetric_kl),
    _over_places(distillation_kl),
)
"""Logits (batch, length, vocabulary) of what follows each of `input_ids`; means over tokens."""


def distilled(
    objective: Objective,
    weight: float = 1.0,
    *,
    temperature: float = 1.0,
    hidden: float = 0.0,
    maps: float = 0.0,
) -> Objective:
    """`objective` with what a teacher says added to its loss.

        L' = L + w · distance(y, y_teacher; T) + h · mean ‖H − H_teacher‖² / d
               + a · mean KL(A_teacher ‖ A)

    The means are over layers (and heads), over the tokens of an example that are no padding, and
    then over the examples, so that a batch in parts is the whole batch. `with_teacher` puts the
    outputs of the teacher in the batch. The student needs as many hidden states of the same width,
    and as many heads, which a factorization never changes.

    Args:
        objective: of the task.
        weight: w. temperature: T. hidden: h. maps: a, of attention. With more than 0, student and
            teacher are functions that return it: `as_function(model, hidden=True, maps=True)`.

    Source: Sun et al., "Patient knowledge distillation" (2019), for hidden states; Edalati et al.,
    "Kronecker decomposition for GPT compression" (2022), for attention.
    """

    def loss(outputs: Any, batch: Batch) -> Array:
        ours, theirs = _outputs(outputs), _outputs(batch[TEACHER])
        value = objective.loss(ours.logits, batch)
        value = value + weight * objective.distance(ours.logits, theirs.logits, batch, temperature)
        tokens = batch["attention_mask"]

        def over_tokens(apart: Array) -> Array:
            rows = jnp.sum(tokens * apart, axis=-1) / jnp.maximum(jnp.sum(tokens, axis=-1), 1)
            return _mean(rows, batch["weight"])

        if hidden > 0:
            if ours.hidden is None or theirs.hidden is None:
                raise ValueError(_missing("hidden states", "hidden"))
            apart = jnp.square(ours.hidden - theirs.hidden).mean((0, -1))
            value = value + hidden * over_tokens(apart)
        if maps > 0:
            if ours.maps is None or theirs.maps is None:
                raise ValueError(_missing("attention maps", "maps"))
            apart = jnp.sum(jnp.exp(theirs.maps) * (theirs.maps - ours.maps), axis=-1)
            value = value + maps * over_tokens(apart.mean((0, 2)))
        return value

    return Objective(
        loss,
        lambda first, second, batch: objective.divergence(
            _outputs(first).logits, _outputs(second).logits, batch
        ),
        lambda student, teacher, batch, t: objective.distance(
            _outputs(student).logits, _outputs(teacher).logits, batch, t
        ),
    )


def _missing(what: str, flag: str) -> str:
    return (
        f"distilled: {what} are missing; make student and teacher with "
        f"as_function(model, {flag}=True)"
    )


def _outputs(found: Any) -> Outputs:
    return found if isinstance(found, Outputs) else Outputs(found, None)


def _mean(rows: Array, weight: Array) -> Array:
    return jnp.sum(weight * rows) / jnp.sum(weight)
