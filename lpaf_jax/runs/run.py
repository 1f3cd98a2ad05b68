"""The folder of a run: whose it is, what is finished in it, what another run lends it."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lpaf_jax.checkpoints import check_saved
from lpaf_jax.core.errors import LpafError, mended_by
from lpaf_jax.core.files import (
    atomic_dir,
    free_bytes,
    json_text,
    link,
    read_json,
    take_lock,
    write_json,
)
from lpaf_jax.core.folders import stage_folder
from lpaf_jax.core.processes import barrier, is_first, well_everywhere
from lpaf_jax.core.progress import borrow_rows
from lpaf_jax.recipes import STAGES, logged_as, own_settings
from lpaf_jax.recipes.base import FINAL
from lpaf_jax.runs.run_log import closed, end_logged, logging_to
from lpaf_jax.runs.settings import Settings, as_json
from lpaf_jax.stages import Stage
from lpaf_jax.tasks.options import DEFAULTS, NOT_COMPARED

# What the first stage of every run depends on, beside its own settings and what is read.
_READ = (
    *("model", "task", "text_column", "label_column", "pair_column", "regression"),
    *("language_model", "data", "limit", "length", "doc_stride"),
)
# What all training stages depend on.
TRAINED = ("batch", "accumulate", "dtype", "seed", "warmup", "weight_decay")

_SECONDS, _MEMORY = "seconds.json", "memory.json"
# All that a run makes beside its settings and logs; what else lies in its folder is not ours to
# delete. The metrics go first: without them a run is not finished.
_FILES = ("metrics.json", "report.html", "analysis.json", _SECONDS, _MEMORY, "logs/train.jsonl")
_FOLDERS = ("model", "stages", "checkpoints")
_AGAIN = "run the same command again, which rebuilds what is missing"

# Of what a run reads: of the whole, or of its parts, too.
Fingerprint = str | Mapping[str, Any]
_UNKNOWN = "fingerprint"


class Run:
    """One run folder. Making one only looks: the folder is written from `opened` on.

    Args:
        settings: what is asked for now.

    Raises:
        LpafError: the folder, or the one to reuse, holds something else than is asked for.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.folder = settings.out
        self._replace = _holds_another(settings)
        self._lenders = [lender for other in settings.reuse for lender in _runs_in(other)]

    def stage(self, name: str) -> Path:
        """Folder of the model after stage `name`."""
        return stage_folder(self.folder, name)

    def checkpoint(self, name: str) -> Path:
        """Folder of the in-stage checkpoints of stage `name`."""
        return self.folder / "checkpoints" / name

    def is_done(self, name: str) -> bool:
        """Whether stage `name` is finished.

        Raises:
            LpafError: it is, but what it left is damaged.
        """
        place = self.stage(name)
        if not (place / "config.json").is_file():
            return False
        with mended_by(f"delete {place} and {_AGAIN}"):
            check_saved(place)
        return True

    def finished(self) -> dict[str, Any] | None:
        """The metrics of an opened run that is finished, else None.

        Raises:
            LpafError: it is finished, but its metrics or its model are damaged.
        """
        path, model = self.folder / "metrics.json", self.stage("final")
        if not path.is_file():
            return None
        with mended_by(f"delete it and {_AGAIN}"):
            metrics = read_json(path)
            if not (isinstance(metrics, dict) and "stages" in metrics):
                raise LpafError(f"{path} does not contain the results of a run")
        with mended_by(f"delete {path} and {model} and {_AGAIN}"):
            check_saved(model)
        return metrics

    @contextmanager
    def opened(self, fingerprint: Fingerprint, needs: int = 0) -> Iterator[None]:
        """Work in the folder: make it this run's, alone, with a log of messages and warnings.

        Args:
            fingerprint: of what the run reads; see `lpaf_jax.tasks.inputs.fingerprint`.
            needs: bytes that a run will write, from its start.

        Raises:
            LpafError: the folder cannot be written, its disk is too full, another process works
                in it, or it holds a run that read something else.
        """
        if not is_first():  # the folder is the first one's to look at and to make
            if not well_everywhere(True):
                raise LpafError("the first process could not start the run; see its error")
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(self._opened(fingerprint, needs))
            except BaseException:
                well_everywhere(False)
                raise
            well_everywhere(True)
            yield

    @contextmanager
    def _opened(self, fingerprint: Fingerprint, needs: int) -> Iterator[None]:
        free = free_bytes(self.folder)
        begun = any(
            (self.folder / name).exists() for name in ("stages", "checkpoints", "metrics.json")
        )
        if free < needs and not begun:
            raise LpafError(
                f"the disk of --out {self.folder} has {free / 1e9:.1f} GB free, but the run may "
                f"need {needs / 1e9:.1f} GB: make room, or name a folder elsewhere"
            )
        try:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            log = (self.folder / "logs" / "run.log").open("a", encoding="utf-8")
        except OSError as error:
            raise LpafError(f"--out {self.folder} cannot be written: {error.strerror}") from None
        with closed(log), logging_to(log):
            take_lock(log, self.folder, "process")
            with end_logged():
                held = _settings_in(self.folder)
                if held is not None and (self._replace or self._changed(held, fingerprint)):
                    self._clear()
                    held = None
                if held is None:
                    path = self.folder / "settings.json"
                    steps = {name: self.key(name)["steps"] for name, _ in self.settings.steps}
                    known = {"fingerprint": fingerprint, "steps": steps}
                    write_json(path, as_json(self.settings) | known)
                self.seconds(), self.memory()  # damaged files are told of before the work
                yield

    def key(self, name: str) -> dict[str, Any]:
        """All that the model after step `name` depends on, but for what the run reads."""
        ours = as_json(self.settings)
        depends = {field: ours[field] for field in (*_READ, *TRAINED)}
        steps = json_text(own_settings(self.settings.steps, name, self.settings.method.digest))
        return depends | {"steps": json.loads(steps)}

    def take_over(self, name: str) -> str | None:
        """Copy the finished step `name` from the first run to reuse that holds the same.

        Returns:
            None where that was done; else why not, in words.
        """
        if name == FINAL:
            return "this kind of stage is not reused"
        told: str | None = None
        for other in self._lenders:
            reason = self._differs(other, name)
            if reason is None:
                self._copy(other, name)
                return None
            if told is None or self._has(other, name):
                told = reason  # that of one without the step says least
        return told or "there is no run to reuse"

    @staticmethod
    def _has(other: Path, name: str) -> bool:
        return (other / f"stages/{name}/config.json").is_file()

    def _differs(self, other: Path, name: str) -> str | None:
        """Why the step `name` of another run is not ours; None where it is."""
        source = other / f"stages/{name}"
        if not self._has(other, name):
            return f"{other} does not contain it"
        theirs, ours = _settings_in(other) or {}, _settings_in(self.folder) or {}
        key = self.key(name)
        differing = [field for field in (*_READ, *TRAINED) if theirs.get(field) != key[field]]
        differing += _changed_steps(theirs.get("steps", {}).get(name), key["steps"])
        differing += _changed_parts(theirs.get("fingerprint"), ours.get("fingerprint"))
        if differing:
            return f"other {', '.join(differing)}"
        try:
            check_saved(source)
        except LpafError as error:
            return str(error)
        return None

    def _copy(self, other: Path, name: str) -> None:
        if is_first():
            with atomic_dir(self.stage(name)) as temporary:
                shutil.copytree(
                    other / f"stages/{name}", temporary, dirs_exist_ok=True, copy_function=link
                )
            logged = logged_as(self.settings.steps)[name]
            if logged is not None:
                borrow_rows(other, self.folder, logged)
            theirs = _of_stages(other / _MEMORY, "peaks of memory")
            if name in theirs:
                self.note_memory(name, theirs[name])

    def note_seconds(self, name: str, seconds: float) -> None:
        """Keep the time that stage `name` has taken."""
        write_json(self.folder / _SECONDS, self.seconds() | {name: round(seconds, 2)})

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage that was done here: one that was taken over has none."""
        return _of_stages(self.folder / _SECONDS, "times")

    def note_memory(self, name: str, peak: int) -> None:
        """Keep how many bytes the process that made stage `name` held at most meanwhile."""
        write_json(self.folder / _MEMORY, self.memory() | {name: peak})

    def memory(self) -> dict[str, int]:
        """Peak memory of each stage in bytes, of one that was taken over where it was made."""
        return _of_stages(self.folder / _MEMORY, "peaks of memory")

    def tidy(self) -> None:
        """Clear what only an unfinished run needs, and the stages that are not to be kept."""
        barrier("end of the run")  # the others may read until here
        if not is_first():
            return
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        if self.settings.keep == "final":
            shutil.rmtree(self.folder / "stages", ignore_errors=True)

    def _clear(self) -> None:
        try:
            for name in _FILES:
                (self.folder / name).unlink(missing_ok=True)
            for name in _FOLDERS:
                if (self.folder / name).exists():
                    shutil.rmtree(self.folder / name)
            # Last: a folder without it would be taken for somebody else's.
            (self.folder / "settings.json").unlink()
        except OSError as error:
            raise LpafError(f"--out {self.folder} cannot be cleared: {error}") from None

    def _changed(self, held: dict[str, Any], fingerprint: Fingerprint) -> bool:
        """Whether the run in the folder read something else, and is to be replaced for that."""
        parts = _changed_parts(held["fingerprint"], fingerprint)
        if not parts:
            return False
        if self.settings.force:
            return True
        which = "" if parts == [_UNKNOWN] else f" ({', '.join(parts)})"
        raise LpafError(
            f"--out {self.folder} was started with other data or weights{which}: "
            f"{held['task'] or held['calibration']} or {held['model']} has changed since; name "
            "another folder, or start over with --force"
        )


def _holds_another(settings: Settings) -> bool:
    """Whether the folder holds another run, which is to be replaced."""
    folder = settings.out
    if not folder.is_dir():
        if folder.exists():
            raise LpafError(f"--out {folder} is a file; name a folder")
        return False
    theirs = _settings_in(folder)
    if theirs is None:
        # The logs alone are what a run killed at its very start may leave.
        names = sorted(p.name for p in folder.iterdir())
        foreign = [n for n in names if n != "logs" and not n.startswith(".")]
        if foreign:
            raise LpafError(
                f"--out {folder} is not empty and has no run of lpaf (it holds {foreign[0]}): "
                "name another folder"
            )
        return False
    ours = as_json(settings)
    theirs = _stage_defaults(settings) | theirs
    other = [n for n in ours if n not in NOT_COMPARED and theirs.get(n) != ours[n]]
    if not other and FINAL in theirs.get("steps", {}):
        steps = json.loads(json_text(own_settings(settings.steps, FINAL, settings.method.digest)))
        other = _changed_steps(theirs["steps"][FINAL], steps)
    if other and not settings.force:
        changes = ", ".join(
            f"{n} {theirs.get(n)!r} there, {ours[n]!r} now" if n in ours else f"other {n}"
            for n in other
        )
        if (preset := theirs.get("preset")) != ours["preset"]:
            changes = f"it had {f'--preset {preset}' if preset else 'no preset'}; {changes}"
        raise LpafError(
            f"--out {folder} holds another run ({changes}): name another folder and reuse what is "
            f"the same with --reuse {folder}, or start over with --force"
        )
    return bool(other)


def _stage_defaults(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage in settings.method.stages:
        found = usual(type(stage)) | found
    return found


def usual(kind: type[Stage]) -> dict[str, Any]:
    """The defaults of a stage's settings: where an earlier run stands that had not all of them."""
    return {f.name: f.default for f in dataclasses.fields(kind)}


def _changed_parts(theirs: Any, ours: Any) -> list[str]:
    """What the inputs differ in that two fingerprints are of; empty where they are the same."""
    was, now = (dict(f) if isinstance(f, Mapping) else {"whole": f} for f in (theirs, ours))
    if was.get("whole") == now.get("whole"):
        return []
    differing = [name for name in was | now if was.get(name) != now.get(name)]
    known = len(was) > 1 and len(now) > 1  # an earlier version noted the whole alone
    return [name for name in differing if name != "whole"] if known else [_UNKNOWN]


def _changed_steps(theirs: Any, ours: list[Any]) -> list[str]:
    """The settings that two lists of steps differ in, as `own_settings` gives them."""
    if theirs == ours:
        return []
    if not isinstance(theirs, list) or [s[0] for s in theirs] != [s[0] for s in ours]:
        return ["stages before it"]
    differing = []
    for was, now in zip(theirs, ours, strict=True):
        known = now[0] in STAGES  # not one of a person's own
        before = (usual(STAGES[now[0]]) if known else {}) | dict(was[1:])
        differing += [name for name, value in now[1:] if before.get(name) != value]
    return differing


def _runs_in(folder: Path) -> list[Path]:
    """The run in `folder`, or those of the comparison there.

    Raises:
        LpafError: there is neither.
    """
    if _settings_in(folder) is not None:
        return [folder]
    if not (folder / "compare.json").is_file():
        raise LpafError(
            f"--reuse {folder} holds no run of lpaf: name the --out folder of a run or a comparison"
        )
    runs = [path.parent for path in sorted((folder / "runs").glob("*/stages"))]
    if not runs:
        raise LpafError(
            f"--reuse {folder} has no stages left: a comparison keeps those of its runs with "
            "--keep all"
        )
    return runs


def _of_stages(path: Path, what: str) -> dict[str, Any]:
    with mended_by(f"delete it: only {what} are lost"):
        found = read_json(path) if path.is_file() else {}
        if not isinstance(found, dict):
            raise LpafError(f"{path} does not contain the {what} of stages")
    return found


def _settings_in(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in `folder`; None where there is none of ours.

    A setting that came later than the run stands at its default, which changes nothing.
    """
    path = folder / "settings.json"
    with mended_by(f"no run can be resumed without it: name another folder, or delete {folder}"):
        values = read_json(path) if path.is_file() else None
    if not (isinstance(values, dict) and {"fingerprint", "params", "task"} <= values.keys()):
        return None
    return DEFAULTS | values
