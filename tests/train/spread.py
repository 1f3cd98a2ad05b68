"""Small trainings on whatever devices there are: what the tests of several devices run.

As a program it runs every case under every layout of eight devices and pickles what it found.
"""

import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.processes import on_host
from lpaf_jax.factorization import to_mixed
from lpaf_jax.linalg import svd
from lpaf_jax.models import (
    BertClassifier,
    as_function,
    compressible,
    fixed_arrays,
    is_compressible,
    mixed_paths,
    parameters,
)
from lpaf_jax.models.bert import BertConfig
from lpaf_jax.train import (
    Checkpoints,
    Layout,
    TrainState,
    cubic_sparsity,
    dual_loss,
    initial_state,
    linear_replacement,
    make_layout,
    make_step,
    prune,
    task_loss,
)

CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)
SMALL = 256  # kernels and tables are cut, biases and the head are not
STEPS, ROWS, LENGTH, RANK = 5, 16, 8, 8
FSDP = {"8 x 1": 1, "1 x 8": 8, "2 x 4": 4}  # by the shape of the mesh, data x fsdp


class Case(NamedTuple):
    """What `initial_state` and `make_step` are given."""

    loss: Any
    optimizer: optax.GradientTransformation
    params: dict[str, Any]
    fixed: dict[str, Any]
    accumulate: int = 1


def batches(count: int = STEPS) -> list[dict[str, np.ndarray]]:
    """Texts of all lengths; the last two of each batch only fill it up."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        lengths = rng.integers(2, LENGTH + 1, ROWS)
        found.append(
            {
                "input_ids": rng.integers(0, CONFIG.vocab_size, (ROWS, LENGTH)).astype(np.int32),
                "attention_mask": (np.arange(LENGTH) < lengths[:, None]).astype(np.int32),
                "token_type_ids": np.zeros((ROWS, LENGTH), np.int32),
                "labels": rng.integers(0, 2, ROWS).astype(np.int32),
                "weight": (np.arange(ROWS) < ROWS - 2).astype(np.float32),
            }
        )
    return found


def adam() -> optax.GradientTransformation:
    """Clipped AdamW.

    Its epsilon is large: gradients that are 0 but for rounding, as those of the keys' biases, would
    become steps of full length in a direction that rounding chooses.
    """
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-3))


def pruning(scope: Any, chosen: Callable[[str], bool]) -> optax.GradientTransformation:
    return prune(
        adam(),
        cubic_sparsity(STEPS, start=1, cooldown=1, final=0.3),
        lambda params: {path: chosen(path) for path in params},
        scope=scope,
        mask_every=2,
    )


def _bert() -> tuple[BertClassifier, dict[str, Any]]:
    """A tiny BERT with dropout, its weights so large that each of them shows in the loss."""
    model = BertClassifier(CONFIG, jax.random.key(0))
    return model, {k: 10 * x if x.ndim == 2 else x for k, x in parameters(model).items()}


def _finetune() -> Case:
    model, params = _bert()
    return Case(task_loss(as_function(model)), adam(), params, {})


def _prune() -> Case:
    return _finetune()._replace(optimizer=pruning("global", is_compressible))


def _mixed() -> Case:
    model, params = _bert()
    kernels = compressible(params)
    rng = np.random.default_rng(1)
    kept = {path: jnp.asarray(rng.random(w.shape) < 0.5) for path, w in kernels.items()}
    to_mixed(model, {path: svd(w, RANK) for path, w in kernels.items()}, kept)
    chance = linear_replacement(STEPS, 0.9)
    loss = dual_loss(as_function(model), chance, len(mixed_paths(model)), 1.0)
    return Case(loss, adam(), parameters(model) | params, fixed_arrays(model))


def prune_by_matrix() -> Case:
    return toy()._replace(optimizer=pruning("matrix", lambda path: path in ("first", "second")))


def _factors() -> Case:
    loss = dual_loss(words, lambda step: jnp.zeros(()), layers=0, consistency=1.0)
    return toy()._replace(loss=loss)


def words(params: Any, fixed: Any, batch: Any, key: Any = None, draws: Any = None) -> jax.Array:
    """Word vectors through two factors, with dropout: where no BERT is needed."""
    x = (params["table"][batch["input_ids"]] * batch["attention_mask"][..., None]).mean(1)
    if key is not None:
        x = jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x, 0.0)
    return jnp.tanh(x @ params["first"]) @ params["second"] @ params["head"]


def toy() -> Case:
    rng = np.random.default_rng(2)
    shapes = {"table": (40, 16), "first": (16, 32), "second": (32, 16), "head": (16, 2)}
    params = {k: jnp.asarray(rng.normal(size=s) / 2, jnp.float32) for k, s in shapes.items()}
    return Case(task_loss(words), adam(), params, {})


# What a case costs is its compilation: a BERT only where more than a step is in question.
CASES = {
    "fine-tuning": (_finetune, ["8 x 1", "1 x 8"]),
    "pruning": (_prune, ["2 x 4"]),
    "pruning by matrix": (prune_by_matrix, ["8 x 1", "2 x 4"]),
    "mixed rank": (_mixed, ["2 x 4"]),
    "factors alone": (_factors, ["2 x 4"]),
    "accumulation": (lambda: toy()._replace(accumulate=2), ["2 x 4"]),
}


def by_name(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}


def places(state: Any) -> dict[str, Any]:
    """The whole shape of each array, those of its parts on each device, and its sharding."""
    return {
        name: (x.shape, [shard.data.shape for shard in x.addressable_shards], str(x.sharding.spec))
        for name, x in by_name(state).items()
    }


def train(case: Case, layout: Layout | None) -> tuple[TrainState, dict[str, Any]]:
    """The last state, and on the host: losses, the state, its places, what was compiled late."""
    step = make_step(case.loss, case.optimizer, accumulate=case.accumulate, layout=layout)
    state = initial_state(case.params, case.optimizer, layout)
    fixed = case.fixed if layout is None else layout.place(case.fixed)
    placed = [batch if layout is None else layout.batch(batch) for batch in batches()]
    key, losses, late = jax.random.key(3), [], []
    before = None if layout is None else places(state)
    for i, batch in enumerate(placed):
        with _compilations() as seen:
            state, logged = step(state, fixed, batch, key)
        late += seen if i else []
        losses.append(logged["loss"])
    found = {"losses": np.array([float(x) for x in losses]), "state": by_name(on_host(state))}
    if layout is not None:
        found |= {"late": late, "before": before, "after": places(state)}
    return state, found


@contextmanager
def _compilations() -> Iterator[list[str]]:
    """Everything that is traced or compiled meanwhile."""
    seen: list[str] = []

    def note(event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    jax.monitoring.unregister_event_duration_listener(note)


def _restored(folder: Path, case: Case, state: TrainState) -> dict[str, Any]:
    """The state, saved as it lies, and restored under every layout and on one device."""
    checkpoints = Checkpoints(folder)
    checkpoints.save_if_due(state, now=True)
    checkpoints.close()
    found = {"saved": (by_name(on_host(state)), places(state))}
    for mesh, fsdp in FSDP.items():
        like = initial_state(case.params, case.optimizer, make_layout(fsdp, small=SMALL))
        restored = Checkpoints(folder).restore(like)
        found[mesh] = by_name(on_host(restored)), places(restored), places(like)
    like = initial_state(case.params, case.optimizer)
    restored = Checkpoints(folder).restore(like)
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(restored))
    return found | {"one device": (by_name(on_host(restored)),)}


def main(out: Path) -> None:
    found: dict[str, Any] = {"devices": jax.device_count()}
    for name, (make, meshes) in CASES.items():
        case = make()
        found[name] = {"one": train(case, None)[1]}
        for mesh in meshes:
            layout = make_layout(FSDP[mesh], small=SMALL)
            state, found[name][mesh] = train(case, layout)
            if (name, mesh) == ("pruning by matrix", "2 x 4"):
                found["restored"] = _restored(out.with_suffix(".states"), case, state)
    try:
        make_layout().batch({k: x[:12] for k, x in batches(1)[0].items()})
    except LpafError as error:
        found["indivisible"] = str(error)
    out.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
