"""The JAX side of `train.py`: the steps and the loop that the stages of `lpaf compress` run.

Run by `train.py`, one process a group; prints JSON.
"""

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from train_common import DRAW, KEPT, TOTAL_STEPS, Job, random_batch, read_job, take_turns

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.files import read_json
from lpaf_jax.core.progress import Progress
from lpaf_jax.data import Encoded
from lpaf_jax.factorization import to_factors, to_mixed
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import (
    BertConfig,
    as_function,
    compressible,
    is_compressible,
    masks,
    mixed_paths,
    parameters,
)
from lpaf_jax.models.functional import Batch, Forward, Params
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.solvers import Solution
from lpaf_jax.stages.trainer import optimizer_of
from lpaf_jax.train import (
    CLASSIFICATION,
    Checkpoints,
    Keys,
    Loop,
    Loss,
    TrainState,
    cubic_sparsity,
    dual_loss,
    initial_state,
    make_step,
    prune,
    run_steps,
    task_loss,
)
from lpaf_jax.train.steps import Step

KINDS = {
    "dense": ["fine-tune", "prune"],
    "25": ["fine-tune", "two-pass", "mixed", "mixed-batched", "mixed-at-0"],
}
DRAWS = {"two-pass": 0.0, "mixed": DRAW, "mixed-batched": DRAW, "mixed-at-0": 0.0}
MASK_EVERY = 10
_LOOP_STEPS, _LOOP_REPEATS = 300, 3


class Row(NamedTuple):
    """A step, where it stands, and how many were taken."""

    step: Step
    state: TrainState
    fixed: Params
    taken: int = 0


def main() -> None:
    job = read_job()
    rows = loop(job) if job.group == "host" else steps(job)
    device = jax.devices()[0]
    told = {"platform": device.platform, "device": device.device_kind, "threads": job.threads}
    print(json.dumps(told | {"versions": {"jax": jax.__version__}, "rows": rows}))


def steps(job: Job) -> dict[str, Any]:
    """Milliseconds a step of all rows of the group."""
    config = BertConfig.from_json(read_json(Path(job.folder) / "config.json"))
    kinds = KINDS.get(job.group, ["fine-tune"])
    rows = {kind: row_of(kind, job) for kind in kinds}
    sizes = {kind: sum(x.size for x in row.state.params.values()) for kind, row in rows.items()}
    work = {
        kind: partial(flops, row.state.params, DRAWS.get(kind, 0.0), config, job)
        for kind, row in rows.items()
    }
    found: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    key = jax.random.key(0)
    logged: dict[str, Any] = {}
    for length in job.lengths:
        batch = random_batch(job, config.vocab_size, length)

        def advance(kind: str, batch: dict[str, np.ndarray] = batch) -> TrainState:
            row = rows[kind]
            state, logged[kind] = row.step(row.state, row.fixed, batch, key, np.int32(row.taken))
            rows[kind] = row._replace(state=state, taken=row.taken + 1)
            return state

        turns = {kind: partial(advance, kind) for kind in kinds}
        ms = take_turns(turns, jax.block_until_ready, job)
        for kind in kinds:
            loss = float(logged[kind]["loss"])
            if not np.isfinite(loss):  # from such a step on nothing changes
                raise SystemExit(f"{job.group}/{kind}: the loss is {loss}")
            passes = 1 if kind in ("fine-tune", "prune") else 2
            found[kind][str(length)] = {
                "ms": ms[kind],
                "parameters": sizes[kind],
                "flops": passes * work[kind](length),
            }
    return found


def row_of(kind: str, job: Job) -> Row:
    """A step as its stage makes it, at the beginning of the schedules."""
    model = load_model(Path(job.folder), num_labels=2)
    if job.rank is not None:
        factors = random_factors(parameters(model), job.rank)
        if kind.startswith("mixed"):
            to_mixed(model, factors, random_masks(parameters(model)))
        else:
            to_factors(model, {path: Solution(pair) for path, pair in factors.items()})
    settings = make_settings("minilm", task="rotten_tomatoes", out="runs")
    optimizer, _ = optimizer_of(settings.training, settings.value("finetune_lr"), TOTAL_STEPS)
    if kind == "prune":
        optimizer = prune(
            optimizer,
            cubic_sparsity(TOTAL_STEPS, start=0, cooldown=300, final=KEPT),
            lambda params: {path: is_compressible(path) for path in params},
            criterion=settings.value("criterion"),
            scope=settings.value("scope"),
            mask_every=MASK_EVERY,
        )
    forward = as_function(model, dtype=None if job.dtype == "float32" else jnp.dtype(job.dtype))
    loss = task_loss(forward)
    if kind == "mixed-batched":
        loss = batched_loss(forward, len(mixed_paths(model)), settings.value("consistency"))
    elif kind in DRAWS:
        layers = len(mixed_paths(model))
        loss = dual_loss(
            forward, lambda _: jnp.float32(DRAWS[kind]), layers, settings.value("consistency")
        )
    state = initial_state(parameters(model), optimizer)
    return Row(make_step(loss, optimizer), state, masks(model))


def batched_loss(forward: Forward, layers: int, consistency: float) -> Loss:
    """As `dual_loss`, with the passes as one batch: both branches of a layer are computed."""

    def loss(
        params: Params, fixed: Params, batch: Batch, keys: Keys, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        draws = jax.random.bernoulli(keys.shared, DRAW, (2, layers)).astype(jnp.float32)
        pair = jax.random.split(keys.own, 2)
        both = jax.vmap(lambda z, key: forward(params, fixed, batch, key, z))(draws, pair)
        task = 0.5 * (CLASSIFICATION.loss(both[0], batch) + CLASSIFICATION.loss(both[1], batch))
        gap = CLASSIFICATION.divergence(both[0], both[1], batch)
        return task + consistency * gap, {"task_loss": task}

    return loss


def random_factors(params: Params, rank: int) -> dict[str, LowRank]:
    """Factors of every compressible kernel; what a step costs does not depend on them."""
    random = np.random.default_rng(0)
    factors = {}
    for path, w in compressible(params).items():
        m, n = w.shape
        a, b = random.normal(size=(m, rank)) / m**0.5, random.normal(size=(rank, n)) / rank**0.5
        factors[path] = LowRank(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    return factors


def random_masks(params: Params) -> Params:
    random = np.random.default_rng(1)
    return {p: jnp.asarray(random.random(w.shape) < KEPT) for p, w in compressible(params).items()}


def flops(params: Params, draw: float, config: BertConfig, job: Job, length: int) -> float:
    """Of the products of one pass, forward and backward: twice as many backward as forward.

    `6 × tokens × numbers in matrices + 12 × layers × batch × length² × width` for attention. A
    mixed layer needs one of its branches, the dense one with probability `draw`.
    """
    matrices = compressible(params)
    dense = sum(w.size for path, w in matrices.items() if path.endswith(".kernel"))
    factors = sum(w.size for w in matrices.values()) - dense
    used = draw * dense + (1 - draw) * factors if dense and factors else dense + factors
    width = config.hidden_size
    attention = 12 * config.num_hidden_layers * job.batch * length**2 * width
    head = 6 * job.batch * (width**2 + width * config.num_labels)
    return 6 * used * job.batch * length + attention + head


def loop(job: Job) -> dict[str, Any]:
    """Milliseconds a step that `run_steps` takes where the device has nothing to do.

    The step is the identity, and its arguments have as many arrays as those of a real one, of one
    number each; the batches are real. Neither validation nor checkpoints fall into it.
    """
    found = {}
    for kind, rank in (("fine-tune", None), ("prune", None), ("mixed", 8)):
        row = row_of(kind, job._replace(rank=rank))
        tiny = jax.tree.map(lambda x: np.zeros((1,) * x.ndim, x.dtype), (row.state, row.fixed))
        leaves = len(jax.tree.leaves(tiny))
        del row
        ms = [_loop_once(job, *jax.tree.map(jnp.asarray, tiny)) for _ in range(_LOOP_REPEATS)]
        found[kind] = {str(max(job.lengths)): {"ms": ms, "leaves": leaves}}
    return found


def _loop_once(job: Job, state: TrainState, fixed: Params) -> float:
    length, until = max(job.lengths), 10 + _LOOP_STEPS
    examples = job.batch * (until + 1)  # so that no epoch ends on the way
    texts = [np.full(length, 7, np.int32)] * examples
    labels = np.zeros(examples, np.int32)
    data = Encoded(texts, [0 * texts[0]] * examples, labels, max_length=length, pad_id=0)
    stage = Loop("finetune", data, job.batch, until + 1, 0, lambda params: 0.0)
    settings = make_settings("minilm", task="rotten_tomatoes", out="runs")
    _, extras = optimizer_of(settings.training, settings.value("finetune_lr"), until + 1)
    with tempfile.TemporaryDirectory() as folder:
        progress = Progress(Path(folder), quiet=True)
        progress.begin("finetune", 0)
        checkpoints = Checkpoints(Path(folder) / "states", every=1e9)
        go = partial(run_steps, stage, _nothing, monitor=progress, checkpoints=checkpoints)
        state = go(state, fixed, until=10, extras=extras)
        started = time.perf_counter()
        jax.block_until_ready(go(state, fixed, until=until, extras=extras))
        return 1e3 * (time.perf_counter() - started) / _LOOP_STEPS


# keep_unused, or what it does not look at would not be handed to the device.
@partial(jax.jit, donate_argnums=0, keep_unused=True)
def _nothing(
    state: TrainState, fixed: Params, batch: Params, key: jax.Array, at: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    return state._replace(step=state.step + 1), {"loss": jnp.zeros(())}


if __name__ == "__main__":
    main()
