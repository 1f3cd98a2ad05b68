"""What the models of a run answer on examples that nothing was trained on."""

import zipfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lpaf_jax.core.files import atomic_write
from lpaf_jax.core.processes import is_first
from lpaf_jax.core.progress import Progress
from lpaf_jax.evaluation.four_bits import in_nf4
from lpaf_jax.models import as_function, parameters
from lpaf_jax.models.functional import Params
from lpaf_jax.tasks.inputs import Inputs
from lpaf_jax.train import predict

# Logits, reduced, on a split; on the test split in four bits, and the bytes that these save.
TEST, VALIDATION, NF4, NF4_SAVED = "test", "validation", "test in NF4", "bytes saved by NF4"
_BATCH, _LEAST = 32, 8
_FILE = "answers.npz"


class Examiner:
    """Asks models for their answers; models of one structure share what is compiled."""

    def __init__(self, inputs: Inputs, progress: Progress):
        self._data = {TEST: inputs.test, VALIDATION: inputs.validation}
        self._progress = progress
        self._batch = evaluation_batch([len(data) for data in self._data.values()])
        self._compiled: dict[Any, Any] = {}

    def answers(
        self,
        name: str,
        model: nnx.Module,
        parts: Collection[str],
        have: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Of the `parts`, TEST, VALIDATION and NF4, those that are not among what we `have`."""
        found, params = dict(have or {}), parameters(model)
        for split in (TEST, VALIDATION):
            if split in parts and split not in found:
                found[split] = self._logits(f"{name} model", model, params, split)
        if NF4 in parts and NF4 not in found:
            rounded, saved = in_nf4(params)
            found[NF4] = self._logits(f"{name} model in NF4", model, rounded, TEST)
            found[NF4_SAVED] = np.array(saved)
        return found

    def _logits(self, called: str, model: nnx.Module, params: Params, split: str) -> np.ndarray:
        data = self._data[split]
        structure = frozenset((path, x.shape) for path, x in params.items())
        forward = self._compiled.setdefault(structure, jax.jit(data.judging(as_function(model))))
        on_batch = partial(self._progress.batch, f"{called} on the {split} split")
        return predict(forward, params, data, self._batch, on_batch)


def evaluation_batch(counts: Sequence[int]) -> int:
    """The batch size, one for all splits, as each is compiled for; 32, but for few examples.

    The last batch of a split is filled up: 36 windows of a text would cost as much as 64.
    """

    def rows(size: int) -> int:
        return sum(-(-count // size) * size for count in counts)

    least = min(map(rows, range(_LEAST, _BATCH + 1)))
    if rows(_BATCH) <= 1.1 * least:
        return _BATCH
    return max(size for size in range(_LEAST, _BATCH + 1) if rows(size) <= 1.1 * least)


def read_answers(stage: Path) -> dict[str, np.ndarray]:
    """Answers of the model in the folder of a finished stage; empty where none are kept.

    Whoever takes the stage over has the same examples, and so the same answers.
    """
    try:
        with (stage / _FILE).open("rb") as file, np.load(file) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, zipfile.BadZipFile):  # a torn file is one that is made again
        return {}


def keep_answers(stage: Path, answers: Mapping[str, np.ndarray]) -> None:
    if is_first():
        with atomic_write(stage / _FILE) as temporary, temporary.open("wb") as file:
            np.savez(file, **answers)  # type: ignore[arg-type]
