"""What a run without a task does with a model, be it a decoder on disk or an encoder in memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lpaf_jax.data import Tokenizer
from lpaf_jax.factorization.blocks import Cut
from lpaf_jax.runs.settings import Settings

COLUMN = "text"
"""Of a table, where none is named."""


class Result(NamedTuple):
    """What became of a model.

    Attributes:
        cuts: of all matrices.
        scores: of the "dense" and of the "compressed" model, by the metric of the model.
    """

    cuts: list[Cut]
    scores: dict[str, float]


class TextModel(ABC):
    """A dense model that is to be factorized by a text.

    Attributes:
        family: its name.
        kind: of task that its head is for.
        positions: longest text it can read, in tokens.
        shapes: of all its parameters, by path.
        matrices: (m, n) of the compressible ones, by path of the layer.
        unread_bytes: what lies in the folder and is no part of the model.
        metric: by which it is judged.
    """

    family: str
    kind: str
    positions: int
    shapes: dict[str, tuple[int, ...]]
    matrices: dict[str, tuple[int, int]]
    unread_bytes: int = 0
    metric: str

    @property
    def biases(self) -> dict[str, bool]:
        """Whether a compressible layer has a bias, by path."""
        return {path: f"{path}.bias" in self.shapes for path in self.matrices}

    def check(self, settings: Settings) -> None:
        """Refuse, before the folder is made, what cannot be done."""
        return None

    @abstractmethod
    def read(self, settings: Settings, tokenizer: Tokenizer, length: int) -> tuple[Any, Any]:
        """The calibration text as the model takes it, and the held-out text or None."""

    @abstractmethod
    def first(self, text: Any, count: int) -> Any:
        """The first `count` pieces of a text."""

    @abstractmethod
    def size(self, text: Any) -> tuple[int, int]:
        """How many pieces and tokens a text has."""

    @abstractmethod
    def bytes(self, text: Any) -> bytes:
        """What tells a text from others."""

    @abstractmethod
    def cut(
        self,
        settings: Settings,
        calibration: Any,
        judged: Any,
        work: Path,
        say: Callable[[str], None],
    ) -> Result:
        """Factorize the model, and judge it before and after."""

    @abstractmethod
    def assemble(self, result: Result, work: Path, folder: Path) -> None:
        """Write the folder of the model that `cut` left."""
