"""A model and data so small that a run of the loop takes less than a second."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lpaf_jax.data import Encoded
from lpaf_jax.train import Checkpoints, Loop, TrainState, initial_state

EXAMPLES, BATCH = 22, 4  # five batches an epoch, two examples left out of each
WORDS = 30


def data() -> Encoded:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, WORDS, rng.integers(2, 9)).astype(np.int32) for _ in range(EXAMPLES)]
    labels = np.array([ids_[0] % 2 for ids_ in ids], np.int32)
    return Encoded(ids, [np.zeros_like(i) for i in ids], labels, max_length=8, pad_id=0)


def stage_of(steps: int) -> Loop:
    return Loop("tune", data(), BATCH, steps, seed=3, validate=lambda params: 0.5)


def parameters() -> dict[str, jax.Array]:
    rng = np.random.default_rng(1)
    params = {"words": rng.normal(size=(WORDS, 6)), "head": rng.normal(size=(6, 2))}
    return {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}


def forward(params: Any, fixed: Any, batch: Any, key: Any = None) -> jax.Array:
    """Mean of word vectors, with noise from the key where there is one."""
    mask = batch["attention_mask"][..., None]
    x = (params["words"][batch["input_ids"]] * mask).sum(1) / mask.sum(1)
    if key is not None:
        x = x * (1 + 0.3 * jax.random.normal(key, x.shape))
    return x @ params["head"]


OPTIMIZER = optax.adam(0.05)


def start(optimizer: optax.GradientTransformation = OPTIMIZER) -> TrainState:
    return initial_state(parameters(), optimizer)


class Nowhere(Checkpoints):
    """Keeps nothing."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))

    def save_if_due(self, state: TrainState, **more: Any) -> None: ...
