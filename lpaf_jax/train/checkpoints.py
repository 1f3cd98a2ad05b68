"""In-stage checkpoints: the whole training state, so that a killed stage goes on where it was."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import multihost_utils

from lpaf_jax.errors import LpafError
from lpaf_jax.train.steps import TrainState

_SECONDS_BETWEEN = 60.0
_KEPT = 2
_METRIC = "value"


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
    """

    def __init__(
        self,
        folder: Path,
        every: float = _SECONDS_BETWEEN,
        *,
        keep: int = _KEPT,
        stands_for: Mapping[str, int | str] | None = None,
        stopwatch: Stopwatch | None = None,
    ):
        self._folder = folder.absolute()
        self._every = every
        self._keep = keep
        self._stands_for = dict(stands_for or {})
        self._stopwatch = stopwatch or Stopwatch()
        self._last = time.monotonic()
        self._opened: Any = None

    def restore(self, like: TrainState, *, best: bool = False) -> TrainState:
        """The newest state that can be read and has the arrays of `like`; else `like` itself.

        Args:
            like: a state of the wanted structure, shapes and places on devices.
            best: the state of the highest value that was saved, before the newest.
        """
        if not self._folder.is_dir():
            return like
        manager = self._manager()
        manager.reload()
        steps = sorted(manager.all_steps(), reverse=True)
        if best:
            values = {s: (manager.metrics(s) or {}).get(_METRIC, -1.0) for s in steps}
            steps.sort(key=lambda s: values[s], reverse=True)
        for step in steps:
            place = self._folder / str(step)
            found = _agreed(partial(self._read, manager, step, like), place)
            if found is not None:
                state, seconds = found
                self._stopwatch.go_on_after(seconds)
                return state
        return like

    def save_if_due(
        self, state: TrainState, *, now: bool = False, value: float | None = None
    ) -> None:
        """Save `state` when the last save is long enough ago, or at once with `now`.

        Args:
            value: how good the state is; the state of the highest is kept.

        Raises:
            LpafError: the disk is full or the folder cannot be written. As states are written in
                the background, this may be told of an earlier one.
        """
        if not now and not _first_says(time.monotonic() - self._last >= self._every):
            return
        with _told_of(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            ocp, manager = _orbax(), self._manager()
            manager.wait_until_finished()
            # A run that went on from before a damaged state passes its step again.
            for passed in [s for s in manager.all_steps() if s >= int(state.step)]:
                manager.delete(passed)
            # A copy: steps donate their state, and this one is read while the next steps run.
            held = _copy(state)
            meta = {"stands_for": self._stands_for, "seconds": self._stopwatch.seconds()}
            manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(held),
                    sums=ocp.args.StandardSave(_sums(held)),
                    meta=ocp.args.JsonSave(meta),
                ),
                metrics=None if value is None else {_METRIC: value},
                force=True,
            )
        self._last = time.monotonic()

    def close(self) -> None:
        """Return when what was saved is on disk; the next call opens the folder again.

        Raises:
            LpafError: it could not be written.
        """
        manager, self._opened = self._opened, None
        if manager is not None:
            with _told_of(self._folder):
                manager.wait_until_finished()
                manager.close()

    def remove(self) -> None:
        """Forget all states: the stage is finished and its result lies elsewhere."""
        self.close()
        if jax.process_index() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _manager(self) -> Any:
        if self._opened is None:
            from orbax.checkpoint.checkpoint_managers import preservation_policy as keep_policy

            ocp = _orbax()
            kept = [
                keep_policy.LatestN(self._keep),
                keep_policy.BestN(
                    get_metric_fn=lambda m: m[_METRIC],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
            self._opened = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=keep_policy.AnyPreservationPolicy(kept),
                    cleanup_tmp_directories=True,
                    create=False,
                ),
            )
        return self._opened

    def _read(self, manager: Any, step: int, like: TrainState) -> tuple[TrainState, float]:
        """A state and its seconds.

        Raises:
            ValueError: it is damaged or of something else; orbax raises many kinds beside.
        """
        ocp, target = _orbax(), jax.tree.map(_abstract, like)
        found = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target),
                sums=ocp.args.StandardRestore(jax.tree.map(_abstract, _sums(like))),
                meta=ocp.args.JsonRestore(),
            ),
        )
        state = found["state"]
        if jax.tree.map(_kind, state) != jax.tree.map(_kind, like):
            raise ValueError("it is the state of another model or optimiser")
        if any(jax.tree.leaves(jax.tree.map(_differ, _sums(state), found["sums"]))):
            raise ValueError("it is damaged: its checksums do not agree")
        theirs = found["meta"]["stands_for"]
        if theirs != self._stands_for:
            raise ValueError(f"it was made with {theirs}, and this run has {self._stands_for}")
        # Orbax may leave memory that is not the device's own, and steps donate their state.
        return _copy(state), float(found["meta"]["seconds"])


def _orbax() -> Any:
    """Orbax, imported when it is used, and without the handler it would put on the root logger."""
    root, ours = logging.getLogger(), logging.NullHandler()
    root.addHandler(ours)  # absl prints all logs of all libraries where there is none
    try:
        import orbax.checkpoint
    finally:
        root.removeHandler(ours)
    return orbax.checkpoint


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def _sums(tree: Any) -> Any:
    """A checksum of each array: its bits by odd multipliers, so that places matter, mod 2³².

    Computed where the array is, so that it covers one spread over processes.
    """

    def one(x: Array) -> Array:
        width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
        bits = x.astype(width) if x.dtype == bool else jax.lax.bitcast_convert_type(x, width)
        bits = bits.astype(jnp.uint32).reshape(-1)
        return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1))

    return jax.tree.map(one, tree)


def _abstract(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _kind(x: Array) -> tuple[Any, ...]:
    return x.shape, x.dtype


def _differ(first: Array, second: Array) -> bool:
    return int(first) != int(second)


def _agreed(read: Callable[[], Any], place: Path) -> Any:
    """What `read` gives; None, and a warning, where it fails on this process or on another."""
    found, why = None, ""
    try:
        found = read()
    except Exception as error:  # orbax and what it stands on raise of many kinds for damage
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if jax.process_count() > 1:
        fine = multihost_utils.process_allgather(jnp.int32(not why))
        why = why or ("" if fine.all() else "another process could not read it")
    if not why:
        return found
    logging.getLogger("lpaf_jax").warning(
        "checkpoint %s cannot be used (%s); trying the one before", place, why
    )
    return None


def _first_says(due: bool) -> bool:
    """Whether the first process finds it due: clocks differ, and all must save together."""
    if jax.process_count() == 1:
        return due
    return bool(multihost_utils.broadcast_one_to_all(jnp.int32(due)))


@contextmanager
def _told_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except LpafError:
        raise
    except Exception as error:  # a full disk reaches us as errors of tensorstore, too
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise LpafError(f"cannot write the checkpoint in {folder}: {reason[0]}") from error
