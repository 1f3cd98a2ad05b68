"""What the stages that make a model smaller have in common."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from lpaf_jax.core.ranges import demand
from lpaf_jax.stages.base import Stage

if TYPE_CHECKING:
    from lpaf_jax.tasks.inputs import Inputs

PARAMS, PARAMS_OF_TEXTS = 0.5, 0.8
"""The share of the compressible numbers that is kept where nothing is asked for: with a task, and
of a decoder that is not trained afterwards."""

_PARAMS = arg(
    metavar="FLOAT",
    help_behavior_hint=f"(default: the recipe's, or {PARAMS}; {PARAMS_OF_TEXTS} without a task)",
)


@dataclass(frozen=True)
class Shrink(Stage):
    """The one stage of a recipe that makes the model smaller."""

    leaves = "factorized"
    shrinks = True

    params: Annotated[float | None, _PARAMS] = None
    """Share of the parameters in the compressible matrices to keep, in (0, 1]."""

    @property
    def factors(self) -> bool:
        """Whether any matrix becomes factors, and does not only lose heads and channels."""
        return False

    def share(self, trained: bool = True) -> float | None:
        """`params`, or the usual where it is not chosen."""
        return (PARAMS if trained else PARAMS_OF_TEXTS) if self.params is None else self.params

    def check(self) -> None:
        """See `Stage.check`."""
        demand(self, "params", lambda x: x is None or 0 < x <= 1, "in (0, 1]")

    @abstractmethod
    def plan(self, inputs: "Inputs") -> str:
        """How much of the compressible weights is to be kept, and as what, in words."""

    def missed(self, inputs: "Inputs") -> str | None:
        """What to say where what is kept is off the share asked for by more than a tenth of it."""
        return None
