"""One stage of a run at work, with the checkpoints it makes on its way."""

from typing import NamedTuple

from lpaf_jax.core.progress import Progress
from lpaf_jax.recipes import logged_as
from lpaf_jax.runs.run import Run
from lpaf_jax.stages import Context, Stage
from lpaf_jax.stages.base import Place, Saved
from lpaf_jax.tasks.inputs import Inputs
from lpaf_jax.tasks.options import Training
from lpaf_jax.train import Checkpoints, Stopwatch


class Done(NamedTuple):
    """What a stage left.

    Attributes:
        saved: its model, and arrays to keep beside it.
        seconds: it took, those before it was killed among them.
        opened: its checkpoints, to be removed once the model is saved.
    """

    saved: Saved
    seconds: float
    opened: list[Checkpoints]


def run_stage(
    job: Run,
    steps: list[tuple[str, Stage]],
    name: str,
    inputs: Inputs,
    training: Training,
    progress: Progress,
    before: tuple[Place, ...],
) -> Done:
    """Run one of the steps of a run from its last checkpoint.

    Args:
        steps: all of them, by the names of the models they leave.
        name: of the one.
        training: what all stages have in common.
        before: the stages before it.
    """
    opened: list[Checkpoints] = []
    stopwatch = Stopwatch()
    stands_for: dict[str, int | str] = {
        "stage": name,
        "seed": training.seed,
        "batch": training.batch,
        "examples": len(inputs.train),
    }

    def checkpoints(part: str) -> Checkpoints:
        folder = job.checkpoint(part)
        opened.append(
            Checkpoints(folder, stands_for=stands_for, stopwatch=stopwatch, warn=progress.warn)
        )
        return opened[-1]

    log = logged_as(steps)[name] or name
    context = Context(inputs, training, progress, before, checkpoints, log)
    saved = dict(steps)[name].run(context)
    return Done(saved, stopwatch.seconds(), opened)
