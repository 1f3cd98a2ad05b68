"""What runs with and without a task do alike: their words, and their end."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import atomic_write, write_json
from lpaf_jax.core.processes import is_first
from lpaf_jax.core.progress import Progress
from lpaf_jax.recipes import logged_as
from lpaf_jax.recipes.base import FINAL
from lpaf_jax.report import model_card, write_report
from lpaf_jax.runs.run import Run
from lpaf_jax.runs.settings import Settings
from lpaf_jax.stages.shrink import Shrink


def describe(settings: Settings, metric: str, ranks: Mapping[str, int]) -> dict[str, Any]:
    """What every stage says of itself, by the name of the model it leaves."""
    steps = settings.steps if settings.trained else settings.steps_of_texts
    factors = any(isinstance(stage, Shrink) and stage.factors for _, stage in steps)
    figures = {"metric": metric, "ranks": ranks, "factors": factors}
    found, logs = {}, logged_as(steps)
    for i, (name, stage) in enumerate(steps):
        retrained = any(later.logs for _, later in steps[i + 1 :])
        words = stage.describe(figures | {"retrained": retrained}).as_json()
        found[name] = words | {"shrinks": stage.shrinks, "logs": logs[name]}
    return found


def finish(job: Run, metrics: dict[str, Any]) -> None:
    """Write the card, the figures and the page, and clear what only an unfinished run needs."""
    if is_first():
        with atomic_write(job.stage(FINAL) / "README.md") as temporary:
            temporary.write_text(model_card(metrics), encoding="utf-8")
        write_json(job.folder / "metrics.json", metrics)
        write_report(job.folder)
    # Last: a run killed before its metrics are written still needs its stages.
    job.tidy()


def finished(job: Run, progress: Progress) -> dict[str, Any] | None:
    """The metrics of an opened run that has nothing left to do, which is said; else None."""
    metrics = job.finished()
    if metrics is not None:
        job.tidy()
        if not (job.folder / "report.html").is_file():
            write_report(job.folder)
        progress.say(f"{job.folder} is already finished; nothing to do")
    return metrics


@contextmanager
def full_disk_explained(job: Run) -> Iterator[None]:
    """What the whole-file writers do not see: logs and in-stage checkpoints."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise LpafError(f"cannot write {job.folder}: {error.strerror}") from error
