"""In-stage checkpoints: the whole training state, so that a killed stage goes on where it was."""

import json
import logging
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.processes import is_first, well_everywhere
from lpaf_jax.train.steps import TrainState

if TYPE_CHECKING:
    from lpaf_jax.train.storage import Storage

_LOG = logging.getLogger("lpaf_jax")
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
    """The latest states of one training stage and the best one, in one folder.

    Orbax writes them: in the background, under a temporary name until they are whole, and of
    states that are spread over devices and processes each process its own part. Saving never
    changes a result, so it goes by the clock: a fast stage is not slowed by it and a slow one loses
    a minute at most.

    The randomness and the batch of step t are functions of the seed and t alone, so the state, the
    seed and what the batches are cut from say where a run stands.

    Args:
        folder: of this stage alone, seen by all processes; created at the first save.
        every: seconds between two saves.
        keep: how many of the latest states are kept, beside the best.
        stands_for: what a state must have been made with to be of use: seed, batch size, number of
            examples. It is kept with each state.
        stopwatch: of the stage; kept with each state, and set back to it when it is restored.
        warn: is told, in a line, of a state that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        every: float = _SECONDS_BETWEEN,
        *,
        keep: int = _KEPT,
        stands_for: Mapping[str, int | str] | None = None,
        stopwatch: Stopwatch | None = None,
        warn: Callable[[str], None] = _LOG.warning,
    ):
        self._folder = folder.absolute()
        self._every = every
        self._keep = keep
        self._stands_for = dict(stands_for or {})
        self._stopwatch = stopwatch or Stopwatch()
        self._warn = warn
        self._last = time.monotonic()
        self._step: int | None = None  # of the state that was restored or saved last
        self._values: dict[int, float] = {}
        self._opened: Storage | None = None

    def restore(self, like: TrainState, *, best: bool = False) -> TrainState:
        """The newest state that can be read and has the arrays of `like`; else `like` itself.

        Args:
            like: a state of the wanted structure, shapes and places on devices.
            best: the state of the highest value that was saved, before the newest.

        Raises:
            LpafError: the folder cannot be looked at, or a state saved before could not be written.
        """
        self.close()
        if not self._folder.is_dir():
            return like
        try:
            return self._newest(like, best)
        finally:
            self.close()

    def save_if_due(
        self, state: TrainState, *, now: bool = False, value: float | None = None
    ) -> None:
        """Save `state` when the last save is long enough ago, or at once with `now`.

        A state of the step that was saved or restored last is on disk and is not written again.

        Args:
            value: how good the state is; the state of the highest is kept.

        Raises:
            LpafError: the disk is full or the folder cannot be written. As states are written in
                the background, this may be told of an earlier one.
        """
        if not now and not _first_says(time.monotonic() - self._last >= self._every):
            return
        step = int(state.step)
        if step == self._step:
            return
        with _told_of("write", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            storage = self._storage()
            for passed in [s for s in self._values if s >= step]:
                del self._values[passed]
            if value is not None:
                self._values[step] = value
            said = {
                "arrays": _kinds(state),
                "stands_for": self._stands_for,
                "seconds": self._stopwatch.seconds(),
                "value": value,
            }
            storage.save(step, state, said | {"sum": _sum_of(said)})
        self._step = step
        self._last = time.monotonic()

    def close(self) -> None:
        """Return when what was saved is on disk; the next call opens the folder again.

        Raises:
            LpafError: it could not be written.
        """
        storage, self._opened = self._opened, None
        if storage is not None:
            with _told_of("write", self._folder):
                storage.close()

    def remove(self) -> None:
        """Forget all states: the stage is finished and its result lies elsewhere."""
        self.close()
        self._step = None
        if is_first():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _newest(self, like: TrainState, best: bool) -> TrainState:
        with _told_of("read", self._folder):
            storage = self._storage()
        steps = sorted(storage.steps(), reverse=True)
        if best and self._values:
            steps.insert(0, _module().best_of(self._values))
        for step in dict.fromkeys(steps):
            said = self._agreed(partial(self._examined, storage, step, like), step)
            state = said and self._agreed(partial(storage.read, step, like), step)
            if state:
                self._step = step
                self._stopwatch.go_on_after(said["seconds"])
                return state
        return like

    def _storage(self) -> "Storage":
        if self._opened is None:
            self._values.clear()
            self._opened = _module().Storage(self._folder, self._keep, self._values)
            for step in self._opened.steps():
                with suppress(Exception):  # of a damaged state, or of no use to this run
                    value = self._said(self._opened, step)["value"]
                    if value is not None:
                        self._values[step] = value
        return self._opened

    def _said(self, storage: "Storage", step: int) -> dict[str, Any]:
        """What was said of a state when it was saved.

        Raises:
            ValueError: it is damaged or the state is of no use to this run; orbax raises many
                kinds beside.
        """
        said = storage.said(step)
        if said.pop("sum", None) != _sum_of(said):
            raise ValueError("it is damaged: its description has changed")
        theirs = said["stands_for"]
        if theirs != self._stands_for:
            raise ValueError(f"it was made with {theirs}, but this run has {self._stands_for}")
        return said

    def _examined(self, storage: "Storage", step: int, like: TrainState) -> dict[str, Any]:
        """What is said of a state that is whole and has the arrays of `like`; raises as `_said`."""
        said = self._said(storage, step)
        if said["arrays"] != _kinds(like):
            raise ValueError("it belongs to another model or optimiser")
        if is_first():  # the files are the same for all
            storage.check(step)
        return said

    def _agreed(self, read: Callable[[], Any], step: int) -> Any:
        """What `read` gives; None, and a warning, where it fails on this process or on another."""
        found, why = None, ""
        try:
            found = read()
        except Exception as error:  # orbax and what it stands on raise of many kinds for damage
            why = _reason(error)
        if not well_everywhere(not why):
            why = why or "another process could not read it"
        if not why:
            return found
        self._warn(
            f"checkpoint {self._folder / str(step)} cannot be used ({why}); trying the previous one"
        )
        return None


def _module() -> Any:
    """The module that imports orbax, which takes a second, when it is used."""
    root, ours = logging.getLogger(), logging.NullHandler()
    root.addHandler(ours)  # absl, which orbax imports, prints all logs of all where there is none
    try:
        from lpaf_jax.train import storage
    finally:
        root.removeHandler(ours)
    return storage


def _kinds(tree: Any) -> dict[str, str]:
    """Shape and type of each array, by its place in the tree."""
    arrays, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in arrays}


def _sum_of(said: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def _first_says(due: bool) -> bool:
    """Whether the first process finds it due: clocks differ, and all must save together."""
    if jax.process_count() == 1:
        return due
    return bool(multihost_utils.broadcast_one_to_all(jnp.int32(due)))


@contextmanager
def _told_of(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except LpafError:
        raise
    except Exception as error:  # a full disk reaches us as errors of tensorstore, too
        raise LpafError(f"cannot {what} the checkpoints in {folder}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom, without the settings that tensorstore tells, too."""
    below: BaseException | None = error
    while below is not None:
        error = below
        below = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r" \[\w+(\[\d+\])?=.*", "", line).rsplit('": ', 1)[-1]
