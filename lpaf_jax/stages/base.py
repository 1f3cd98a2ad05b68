"""What a stage is: settings of its own, how it runs, and how it describes what it did."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lpaf_jax.core.ranges import demand, whole

if TYPE_CHECKING:  # models and their libraries take a second to import, and --help needs none
    from flax import nnx

    from lpaf_jax.core.progress import Progress
    from lpaf_jax.tasks.inputs import Inputs
    from lpaf_jax.tasks.options import Training
    from lpaf_jax.train import Checkpoints

# A model, and arrays to keep beside its weights.
Saved = tuple["nnx.Module", dict[str, Any] | None]


class Place(NamedTuple):
    """Where a finished stage of a run left its model, and which stage it was."""

    folder: Path
    stage: "Stage"


class Context(NamedTuple):
    """What a stage is given.

    Attributes:
        inputs: the task, and the pretrained model.
        training: what all training stages of the run have in common.
        progress: is told how it goes.
        finished: the stages before this one, in their order.
        checkpoints: of the training in this stage, by the name of a part of it.
        log: the name that its training logs under, from which its seed comes.
    """

    inputs: "Inputs"
    training: "Training"
    progress: "Progress"
    finished: tuple[Place, ...]
    checkpoints: Callable[[str], "Checkpoints"]
    log: str

    @property
    def before(self) -> Path:
        """Folder of the model that this stage starts from."""
        return self.finished[-1].folder

    def last(self, kind: type["Stage"]) -> Place | None:
        """The last finished stage of a kind."""
        return next((p for p in reversed(self.finished) if isinstance(p.stage, kind)), None)

    def before_last(self, kind: type["Stage"]) -> Path:
        """Folder of the model that the last finished stage of a kind started from."""
        found = [i for i, place in enumerate(self.finished) if isinstance(place.stage, kind)]
        return self.finished[found[-1] - 1].folder


class Description(NamedTuple):
    """A stage in the words of pages and cards.

    Attributes:
        label: of the model it leaves: "Pruned".
        phase: what is done in it: "Pruning".
        text: what it does, in a few sentences, for a reader who never saw the paper.
        card: what the model that it leaves is, one sentence or two, for a model card.
    """

    label: str
    phase: str
    text: str
    card: str

    def as_json(self) -> dict[str, str]:
        """The same as JSON values."""
        return self._asdict()


@dataclass(frozen=True)
class Stage(ABC):
    """One step of a recipe: a frozen dataclass whose fields are its settings.

    The fields are the flags of the command, so that one name means the same in all stages; their
    docstrings are its help. A finished stage is reused where they, the settings of the stages
    before it and what the run reads are the same.
    """

    leaves: ClassVar[str]
    """Name of the model that the stage leaves: that of its folder and of its figures."""
    logs: ClassVar[str | None] = None
    """Name under which its steps are logged, of a stage that trains."""
    shrinks: ClassVar[bool] = False
    """Whether the model it leaves stores fewer numbers."""

    @abstractmethod
    def run(self, context: Context) -> Saved:
        """Do the work, from the last checkpoint if there is one."""

    @abstractmethod
    def describe(self, found: Mapping[str, Any]) -> Description:
        """Say what was done.

        Args:
            found: what is known of the run: `metric`, the key of the primary metric; `ranks`, of
                the factorized layers by path, once known; `retrained`, whether a later stage
                trains; `factors`, whether there are any factors to train.
        """

    def check_inputs(self, inputs: "Inputs") -> None:
        """Refuse a task that the stage cannot work on, before any work.

        Raises:
            LpafError: says which it can.
        """
        return None

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            LpafError: names the setting and its range.
        """
        return None

    @property
    def idle(self) -> bool:
        """Whether with these settings there is nothing to do, so that the stage is left out."""
        return False

    def settings(self) -> dict[str, Any]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def check_adapters(stage: Stage, rank: str) -> None:
    """Refuse settings of a stage that trains adapters; `rank` is its field for their rank.

    Raises:
        LpafError: names the setting and its range.
    """
    demand(stage, rank, whole(1), "a whole number, at least 1")
    for name in ("lora_alpha", "lora_epochs"):
        demand(stage, name, lambda x: 0 < x < math.inf, "finite and more than 0")
    demand(stage, "lora_lr", lambda x: 0 < x < 1, "in (0, 1)")
