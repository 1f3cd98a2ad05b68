"""In-stage checkpoints: the whole training state, so that a killed stage goes on where it was."""

import logging
import shutil
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lpaf_jax.files import atomic_write
from lpaf_jax.train.steps import TrainState

_SECONDS_BETWEEN = 60.0
_KEPT = 2


class Stopwatch:
    """Seconds that a stage has taken, with those of earlier processes that a checkpoint kept."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._before = 0.0

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def go_on_after(self, seconds: float) -> None:
        """Let this process go on where one stood that had taken `seconds`."""
        self._before = seconds


class Checkpoints:
    """The latest states of one training stage, a numpy archive each, in one folder.

    Saving never changes a result, so it goes by the clock: a fast stage is not slowed by it and a
    slow one loses a minute at most.

    Args:
        folder: of this stage alone; created at the first save.
        every: seconds between two saves.
        stopwatch: of the stage; kept with each state, and set back to it when it is restored.
    """

    def __init__(
        self,
        folder: Path,
        every: float = _SECONDS_BETWEEN,
        stopwatch: Stopwatch | None = None,
    ):
        self._folder = folder
        self._every = every
        self._stopwatch = stopwatch or Stopwatch()
        self._last = time.monotonic()

    def restore(self, like: TrainState) -> TrainState:
        """The newest state that can be read and has the arrays of `like`; else `like` itself."""
        leaves, treedef = jax.tree.flatten(like)
        for file in reversed(self._files()):
            try:
                found, seconds = _read(file)
                if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in leaves]:
                    raise ValueError("it is the state of another model or optimiser")
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                logging.getLogger("lpaf_jax").warning(
                    "checkpoint %s cannot be used (%s); trying the one before", file, error
                )
                continue
            self._stopwatch.go_on_after(seconds)
            # Copied onto the device: steps donate their state, and numpy memory is not theirs.
            return jax.tree.unflatten(treedef, [jnp.array(x, copy=True) for x in found])
        return like

    def save_if_due(self, state: TrainState, *, now: bool = False) -> None:
        """Save `state` when the last save is long enough ago, or at once with `now`.

        Raises:
            LpafError: the disk is full or the folder cannot be written.
        """
        if not now and time.monotonic() - self._last < self._every:
            return
        target = self._folder / f"{int(state.step):09d}.npz"
        with atomic_write(target) as temporary, temporary.open("wb") as file:
            leaves = map(np.asarray, jax.tree.leaves(state))
            np.savez(file, *leaves, seconds=np.asarray(self._stopwatch.seconds()))
        for old in self._files()[:-_KEPT]:
            old.unlink()
        self._last = time.monotonic()

    def remove(self) -> None:
        """Forget all states: the stage is finished and its result lies elsewhere."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.npz"))


def _read(file: Path) -> tuple[list[np.ndarray], float]:
    # A zip archive holds a checksum of each array: damage does not go unseen. The file is opened
    # here because numpy leaves it open where it is no archive.
    with file.open("rb") as opened, np.load(opened) as archive:
        count = len(set(archive.files) - {"seconds"})
        leaves = [archive[f"arr_{i}"] for i in range(count)]
        return leaves, float(archive.get("seconds", 0.0))
