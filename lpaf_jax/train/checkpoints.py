"""In-stage checkpoints: the whole training state, so that a killed stage goes on where it was."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lpaf_jax.train.steps import TrainState

_SECONDS_BETWEEN = 60.0


class Checkpoints:
    """The latest states of one training stage in one folder, written in the background.

    Saving never changes a result, so it goes by the clock: a fast stage is not slowed by it and a
    slow one loses a minute at most.

    Args:
        folder: of this stage alone; created at the first save.
        every: seconds between two saves.
    """

    def __init__(self, folder: Path, every: float = _SECONDS_BETWEEN):
        self._folder = folder
        self._every = every
        self._last = time.monotonic()
        self._manager: Any = None

    def restore(self, like: TrainState) -> TrainState:
        """The newest state that can be read; `like` itself where there is none."""
        if not self._folder.is_dir():
            return like
        import orbax.checkpoint as ocp

        leaves, treedef = jax.tree.flatten(like)
        target = {f"{i:05d}": np.zeros(x.shape, x.dtype) for i, x in enumerate(leaves)}
        for step in sorted(self._open().all_steps(), reverse=True):
            try:
                found = self._open().restore(step, args=ocp.args.StandardRestore(target))
            except Exception as error:  # a damaged checkpoint: the one before it still serves
                logging.getLogger("lpaf_jax").warning(
                    "checkpoint %s/%d cannot be read (%s); trying the one before",
                    self._folder,
                    step,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
                continue
            # Copied onto the device: steps donate their state, and numpy memory is not theirs.
            values = [jax.numpy.array(found[name], copy=True) for name in sorted(target)]
            return jax.tree.unflatten(treedef, values)
        return like

    def save_if_due(self, state: TrainState, *, now: bool = False) -> None:
        """Save `state` when the last save is long enough ago, or at once with `now`."""
        if not now and time.monotonic() - self._last < self._every:
            return
        import orbax.checkpoint as ocp

        leaves = {f"{i:05d}": x for i, x in enumerate(map(np.array, jax.tree.leaves(state)))}
        self._open().save(int(state.step), args=ocp.args.StandardSave(leaves))
        self._last = time.monotonic()

    def wait(self) -> None:
        """Return when all that was saved lies on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def remove(self) -> None:
        """Forget all states: the stage is finished and its result lies elsewhere."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()
            self._manager = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp  # a second to import: not paid by who only evaluates

            self._manager = ocp.CheckpointManager(
                self._folder.absolute(),
                options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True),
            )
        return self._manager
