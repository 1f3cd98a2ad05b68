"""Importances of rows from the gradients of adapters: no gradient of a matrix is made.

With `W + s A B`, and G the gradient of W, those of the adapter are `∇A = s G Bᵀ` and
`∇B = s Aᵀ G`. LoRAPrune takes from them

    ĝ = A ∇B + ∇A B = s (A Aᵀ G + G Bᵀ B),

of rank 2r at most, for G itself. While B is 0 that is `s A Aᵀ G`, whose rows are those of G mixed
at random: they say next to nothing of each. Adapters are trained first, for one pass, which was not
seen to change that (docs/lora.md).

The sketch works at once: with A at 0 and B drawn again and again, N(0, 1/r), it is
`E ‖∇A_i‖² = ‖G_i‖²`, row by row. What it estimates, `fisher_rows` computes.

Sources: Zhang et al., "LoRAPrune: structured pruning meets low-rank parameter-efficient
fine-tuning" (2024), whose step of size 1 in A and B at once, `− ∇A ∇B`, is left out: it depends
on the scale of the loss. The sketch, and sums by rows, are ours.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from lpaf_jax.importance.base import Importance, Subject, Weighting, register_importance
from lpaf_jax.importance.fisher import in_chunks
from lpaf_jax.importance.gradients import GradientSums, rows_that_count
from lpaf_jax.importance.rows import by_rows
from lpaf_jax.linalg.arithmetic import matmul
from lpaf_jax.models.functional import Batch, Params, as_function, fixed_arrays, parameters
from lpaf_jax.models.lora import adapters, add_adapters

RANK = 8
# Of AdamW, as in LoRAPrune's script; s is its 16 / 8.
_LEARNING_RATE, _SCALE = 1e-4, 2.0

Loss = Callable[[Array, Batch], Array]


def sketched_rows(
    model: nnx.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    rank: int = RANK,
    seed: int = 0,
    chunk: int = 4,
) -> Params:
    """An unbiased estimate of `fisher_rows`, which holds gradients of adapters alone.

    Its standard deviation is that of `‖G_i‖²` over the examples, and beside it `√(2/r)` of it,
    which chunks average, as each has a B of its own.

    Args:
        model: left as it is; dropout is off.
        batches: rows of weight 0 are not counted.
        loss: of outputs and batch, a mean by weight.
        rank: r of the sketch.
        seed: of B.
        chunk: examples whose gradients, (m, r) for each layer, are held at once.

    Returns:
        by path of the layer, (m,) in float32.

    Raises:
        ValueError: no row of weight above 0.
    """
    model = nnx.clone(model)
    add_adapters(model, rank, scale=1.0, seed=seed)
    forward, fixed, params = as_function(model), fixed_arrays(model), parameters(model)
    a = {path: jnp.zeros_like(x) for path, x in params.items() if path.endswith("lora_a")}
    shapes = {path: x.shape for path, x in params.items() if path.endswith("lora_b")}

    def alone(a: Params, b: Params, fixed: Params, example: Batch) -> Array:
        row = {name: x[None] for name, x in example.items()}
        counted = jnp.any(row["weight"] > 0)
        # One that only fills a batch still needs a loss: its square is dropped below.
        row["weight"] = jnp.where(counted, row["weight"], 1)
        return loss(forward(a | b, fixed, row), row)

    each = jax.vmap(jax.grad(alone), in_axes=(None, None, None, 0))

    @jax.jit
    def add(sums: GradientSums, a: Params, fixed: Params, batch: Batch, key: Array) -> GradientSums:
        def part(sums: GradientSums, given: tuple[Batch, Array]) -> tuple[GradientSums, None]:
            rows, key = given
            keys = jax.random.split(key, len(shapes))
            b = {
                path: jax.random.normal(own, shape) / jnp.sqrt(rank)
                for own, (path, shape) in zip(keys, shapes.items(), strict=True)
            }
            counted = jnp.any(rows["weight"].reshape(len(rows["weight"]), -1) > 0, axis=1)
            found = {
                path.removesuffix(".lora_a"): jnp.where(counted[:, None, None], g, 0)
                for path, g in each(a, b, fixed, rows).items()
            }
            return sums.adding(found, lambda path, g: jnp.sum(jnp.square(g), axis=(0, 2))), None

        parts = in_chunks(batch, chunk)
        keys = jax.random.split(key, len(parts["weight"]))
        return jax.lax.scan(part, sums, (parts, keys))[0]

    sums = GradientSums.of_rows({path.removesuffix(".lora_a"): len(x) for path, x in a.items()})
    key, count = jax.random.key(seed), 0
    for index, batch in enumerate(batches):
        sums = add(sums, a, fixed, dict(batch), jax.random.fold_in(key, index))
        count += int(rows_that_count(batch).sum())
    if count == 0:
        raise ValueError("there are no examples to compute gradients on")
    return sums.means(count)


def lora_rows(
    model: nnx.Module,
    batches: Callable[[], Iterable[Batch]],
    loss: Loss,
    *,
    by: Literal["gradient", "taylor"] = "gradient",
    rank: int = RANK,
    seed: int = 0,
) -> Params:
    """Row sums of `E[ĝ²]`, or of `Ĵ = E[(ĝ ∘ (W + s A B))²]`, over batches.

    Adapters are trained in one pass over the batches, and looked at in a second one.

    Args:
        model: left as it is; dropout is off.
        batches: of the data, from the first one at each call.
        loss: of outputs and batch, a mean by weight.
        by: what is squared: ĝ, whose rows need no matrix at all, or ĝ times the weight, one layer
            after the other.
        rank: of the adapters.
        seed: of A.

    Returns:
        by path of the layer, (m,) in float32.

    Raises:
        ValueError: there is no batch.
    """
    model = nnx.clone(model)
    add_adapters(model, rank, scale=_SCALE, seed=seed)
    forward, fixed = as_function(model), fixed_arrays(model)
    optimizer = optax.adamw(_LEARNING_RATE, weight_decay=0.0)

    def value(params: Params, fixed: Params, batch: Batch) -> Array:
        return loss(forward(params, fixed, batch), batch)

    @jax.jit
    def step(params: Params, state: Any, fixed: Params, batch: Batch) -> tuple[Params, Any]:
        grads = jax.grad(value)(params, fixed, batch)
        updates, state = optimizer.update(grads, state, params)
        return {path: x + updates[path] for path, x in params.items()}, state

    @jax.jit
    def look(sums: GradientSums, params: Params, fixed: Params, batch: Batch) -> GradientSums:
        grads = jax.grad(value)(params, fixed, batch)

        def squared(path: str, of: tuple[Array, Array]) -> Array:
            a, b = (params[f"{path}.lora_{side}"] for side in "ab")
            to_a, to_b = of
            if by == "gradient":
                return _squared_rows(a, to_b, to_a, b)
            weight = fixed[f"{path}.base.kernel"] + _SCALE * matmul(a, b)
            estimate = matmul(a, to_b) + matmul(to_a, b)
            return jnp.sum(jnp.square(estimate * weight), axis=1)

        pairs = {p: (grads[f"{p}.lora_a"], grads[f"{p}.lora_b"]) for p in places}
        return sums.adding(pairs, squared)

    places = list(adapters(model))
    params, count = parameters(model), 0
    state = optimizer.init(params)
    for batch in batches():
        params, state = jax.block_until_ready(step(params, state, fixed, dict(batch)))
    sums = GradientSums.of_rows({path: len(params[f"{path}.lora_a"]) for path in places})
    for batch in batches():
        sums = jax.block_until_ready(look(sums, params, fixed, dict(batch)))
        count += 1
    if count == 0:
        raise ValueError("there are no batches to compute gradients on")
    return sums.means(count)


def _squared_rows(a: Array, to_b: Array, to_a: Array, b: Array) -> Array:
    """`‖(A ∇B + ∇A B)_i‖²` for each row, from products of (r, n) with (n, r) alone."""
    both, other = jnp.concatenate([a, to_a], axis=1), jnp.concatenate([to_b, b])
    return jnp.maximum(jnp.sum(matmul(both, matmul(other, other.T)) * both, axis=1), 0)


def _of_sketch(subject: Subject) -> dict[str, Weighting]:
    assert subject.loss is not None
    return by_rows(subject, sketched_rows(subject.model, subject.batches(), subject.loss))


def _of_adapters(by: Literal["gradient", "taylor"]) -> Callable[[Subject], dict[str, Weighting]]:
    def found(subject: Subject) -> dict[str, Weighting]:
        assert subject.loss is not None
        return by_rows(subject, lora_rows(subject.model, subject.batches, subject.loss, by=by))

    return found


def _register(
    name: str, summary: str, found: Callable[[Subject], dict[str, Weighting]], source: str
) -> None:
    register_importance(
        Importance(name, summary, frozenset({"left"}), frozenset({"loss"}), found, source=source)
    )


_register(
    "lora-sketch",
    "to preserve the rows that the loss is most sensitive to, estimated from adapters at zero",
    _of_sketch,
    "an estimate of fisher-rows from gradients of adapters alone",
)
_register(
    "lora",
    "to preserve the rows with large gradients, estimated from adapters",
    _of_adapters("gradient"),
    "L = diag Σ_j E[ĝ²_ij], ĝ = A ∇B + ∇A B; Zhang et al., LoRAPrune, 2024",
)
_register(
    "lora-taylor",
    "to preserve the rows with large gradients times weights, estimated from adapters",
    _of_adapters("taylor"),
    "L = diag Σ_j E[(ĝ W)²_ij]; Zhang et al., LoRAPrune, 2024",
)
