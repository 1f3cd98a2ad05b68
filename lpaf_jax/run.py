"""The folder of a run: what is finished, what a run may continue, where things lie."""

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lpaf_jax.errors import LpafError
from lpaf_jax.files import read_json, write_json
from lpaf_jax.settings import NOT_COMPARED, Settings, as_json

_TASK_FIELDS = ("model", "task", "text_column", "label_column", "pair_column", "data", "limit")
_DENSE_FIELDS = (
    *_TASK_FIELDS,
    *("length", "batch", "seed", "finetune_epochs", "finetune_lr", "warmup", "weight_decay"),
)
_PRUNED_FIELDS = (
    *_DENSE_FIELDS,
    *("criterion", "kept", "scope", "mask_every", "score_decay"),
    *("prune_epochs", "prune_lr", "cooldown"),
)
# A stage that another run has finished is the same stage where all these settings are the same.
STAGE_FIELDS = {"dense": _DENSE_FIELDS, "pruned": _PRUNED_FIELDS}


class Run:
    """One run folder.

    Args:
        settings: what is asked for now.

    Raises:
        LpafError: the folder cannot be written, or holds something else than this run.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.folder = settings.out
        self._check_folder()
        for name in ("logs", "stages", "checkpoints"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not (self.folder / "settings.json").is_file():
            write_json(self.folder / "settings.json", as_json(settings))

    def stage(self, name: str) -> Path:
        """Folder of the model after stage `name`."""
        return self.folder / ("model" if name == "final" else f"stages/{name}")

    def checkpoint(self, name: str) -> Path:
        """Folder of the in-stage checkpoints of stage `name`."""
        return self.folder / "checkpoints" / name

    def is_done(self, name: str) -> bool:
        """Whether stage `name` is finished, here or under the same settings in the reused run."""
        if (self.stage(name) / "config.json").is_file():
            return True
        other = self.settings.reuse
        fields = STAGE_FIELDS.get(name)
        if other is None or fields is None or not (other / f"stages/{name}/config.json").is_file():
            return False
        theirs, ours = read_json(other / "settings.json"), as_json(self.settings)
        if any(theirs.get(field) != ours[field] for field in fields):
            return False
        temporary = self.stage(name).with_name(f".{name}.{os.getpid()}.tmp")
        shutil.copytree(other / f"stages/{name}", temporary)
        os.replace(temporary, self.stage(name))
        self.note_seconds(name, read_json(other / "seconds.json").get(name, 0.0))
        return True

    def note_seconds(self, name: str, seconds: float) -> None:
        """Add to the time that stage `name` has taken, over all tries."""
        all_seconds = self.seconds()
        all_seconds[name] = round(all_seconds.get(name, 0.0) + seconds, 2)
        write_json(self.folder / "seconds.json", all_seconds)

    def seconds(self) -> dict[str, float]:
        """Seconds a stage."""
        path = self.folder / "seconds.json"
        return dict(read_json(path)) if path.is_file() else {}

    def finished(self) -> dict[str, Any] | None:
        """The metrics of a run that is finished; None for one that is not."""
        path = self.folder / "metrics.json"
        return read_json(path) if path.is_file() else None

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise LpafError(f"--out {self.folder} is a file; name a folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise LpafError(f"--out {self.folder} cannot be written: {error.strerror}") from None
        record = self.folder / "settings.json"
        held = sorted(p.name for p in self.folder.iterdir())
        if record.is_file():
            theirs, ours = read_json(record), as_json(self.settings)
            other = [n for n in ours if n not in NOT_COMPARED and theirs.get(n) != ours[n]]
            if other and not self.settings.force:
                changes = ", ".join(f"{n} {theirs.get(n)!r} there, {ours[n]!r} now" for n in other)
                raise LpafError(
                    f"--out {self.folder} holds another run ({changes}): "
                    "name another folder, or start anew there with --force"
                )
            if other:
                for name in held:
                    place = self.folder / name
                    shutil.rmtree(place) if place.is_dir() else place.unlink()
        elif held:
            raise LpafError(
                f"--out {self.folder} is not empty and holds no run of lpaf "
                f"({held[0]} lies there): name another folder"
            )


def set_up_logging(folder: Path) -> None:
    """Send the package's log messages, and warnings of libraries, to `logs/run.log`."""
    handler = logging.FileHandler(folder / "logs" / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    logging.getLogger("lpaf_jax").setLevel(logging.INFO)
    # Libraries speak to the log, not to the person's terminal.
    for name in ("absl", "jax", "orbax", "transformers", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).propagate = True
    logging.captureWarnings(True)
