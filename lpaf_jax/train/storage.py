"""How orbax writes and reads the states of a stage, and how damage to their files is found.

Orbax finds some damage by itself, but not that of a single bit; and where one of its reads fails,
the others go on and complain on the screen. So a state is written with the digests of its files,
which are compared before it is read.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lpaf_jax.core.processes import is_first

_DIGESTS = "sha256.json"


class Storage:
    """States by their steps in a folder, of which the latest and the best are kept.

    Each has a mapping of plain values beside it. Orbax raises errors of many kinds.

    Args:
        folder: exists.
        latest: how many of the latest are kept.
        values: by step, how good a state is; may be changed later.
    """

    def __init__(self, folder: Path, latest: int, values: Mapping[int, float]):
        self._folder = folder
        if is_first():
            # Orbax's own cleaning goes on in the background, when the same may be saved again.
            for half in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(half, ignore_errors=True)
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(latest, values), create=False
            ),
            handler_registry=_handlers(),
        )

    def steps(self) -> list[int]:
        return list(self._manager.all_steps())

    def save(self, step: int, state: Any, said: Mapping[str, Any]) -> None:
        """Begin to write a state; an error in it is raised here, at the next call or by `close`.

        Orbax has the arrays on the host when it returns. Where that is their own memory, on a CPU,
        jax lets no step reuse it while it is being written.
        """
        self._manager.wait_until_finished()
        # A run that went on from before a damaged state passes its step again.
        for passed in [s for s in self.steps() if s >= step]:
            self._manager.delete(passed)
        items = {"state": ocp.args.StandardSave(state), "said": ocp.args.JsonSave(said)}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def said(self, step: int) -> dict[str, Any]:
        """What stands beside a state."""
        args = ocp.args.Composite(said=ocp.args.JsonRestore())
        return dict(self._manager.restore(step, args=args)["said"])

    def check(self, step: int) -> None:
        """Compare the files of a state with their digests.

        Raises:
            ValueError: one is missing or has changed, or the digests cannot be read.
            OSError: one cannot be read.
        """
        folder = self._folder / str(step) / "state"
        digests = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
        for name, digest in digests.items():
            file = folder / name
            if not file.is_file():
                raise ValueError(f"it is damaged: {name} is missing")
            if _digest(file) != digest:
                raise ValueError(f"it is damaged: {name} has changed")

    def read(self, step: int, like: Any) -> Any:
        """A state with the structure, shapes and places of `like`."""
        target = ocp.args.StandardRestore(jax.tree.map(_abstract, like))
        found = self._manager.restore(step, args=ocp.args.Composite(state=target))["state"]
        # Steps donate their state, and on a CPU orbax's arrays may lie in memory of numpy's.
        return _copy(found) if jax.default_backend() == "cpu" else found

    def close(self) -> None:
        """Return when all is written."""
        try:
            self._manager.wait_until_finished()
        finally:
            self._manager.close()


def best_of(values: Mapping[int, float]) -> int:
    """The step of the highest value, the later of equals."""
    return max(values, key=lambda step: (values[step], step))


class _LatestAndBest(preservation_policy.PreservationPolicy):
    """Orbax's own policy of the best reads a file beside each state, and fails if it is damaged."""

    def __init__(self, latest: int, values: Mapping[int, float]):
        self._latest = latest
        self._values = values

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(steps[-self._latest :])
        here = {step: self._values[step] for step in steps if step in self._values}
        if here:
            kept.add(best_of(here))
        return [step in kept for step in steps]


class _Digested(ocp.StandardCheckpointHandler):
    """Writes arrays as orbax does, and in the end, before they count, the digests of all files."""

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        folder = Path(directory)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        digests = {str(file.relative_to(folder)): _digest(file) for file in files}
        (folder / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")


def _handlers() -> Any:
    registry, handler = ocp.DefaultCheckpointHandlerRegistry(), _Digested()
    for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
        registry.add("state", args, handler)
    return registry


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _abstract(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
