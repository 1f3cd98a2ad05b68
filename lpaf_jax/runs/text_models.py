"""What a run without a task does with a model, be it a decoder on disk or an encoder in memory."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lpaf_jax.core.progress import Progress
from lpaf_jax.data import Examples, Tokenizer, load_task
from lpaf_jax.data.movie_reviews import SOURCES
from lpaf_jax.factorization.store import Cut
from lpaf_jax.runs.settings import Settings

COLUMN = "text"
"""Of a table, where none is named."""
JUDGED = 32
"""Pieces at the end of the calibration text that are held out, at most, where nothing else is."""


def is_packaged(text: Path) -> bool:
    """Whether a text is called by the name of a data set that a package holds: `imdb`."""
    return str(text) in SOURCES and not text.is_file()


def source_of(text: Path, part: Literal["train", "test"]) -> Path | list[str]:
    """A file, or of a packaged data set the texts of a split.

    Raises:
        LpafError: the package is not installed.
    """
    if not is_packaged(text):
        return text
    found: Examples = getattr(load_task(str(text)), part)
    return found.texts


class Result(NamedTuple):
    """What became of a model.

    Attributes:
        cuts: of all matrices.
        scores: of the "dense" and of the "compressed" model, by the metric of the model.
        saved: numbers that the token embeddings have no more.
    """

    cuts: list[Cut]
    scores: dict[str, float]
    saved: int = 0


class TextModel(ABC):
    """A dense model that is to be factorized by a text.

    Attributes:
        family: its name.
        kind: of task that its head is for.
        positions: longest text it can read, in tokens.
        shapes: of all its parameters, by path.
        matrices: (m, n) of the compressible ones, by path of the layer.
        dense_bytes: what the dense model takes, as it would be written here.
        codes: what its weights are quantized as in the file; empty for floats.
        metric: by which it is judged.
    """

    family: str
    kind: str
    positions: int
    shapes: dict[str, tuple[int, ...]]
    matrices: dict[str, tuple[int, int]]
    dense_bytes: int
    codes: Sequence[str] = ()
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
        """The calibration text as the model takes it, and the text to judge by.

        That is the held-out text or, where none is given, the end of the calibration text, which is
        then not among the first; None where the text is too short to be parted.
        """

    @abstractmethod
    def size(self, text: Any) -> tuple[int, int]:
        """How many pieces and tokens a text has."""

    @abstractmethod
    def bytes(self, text: Any) -> bytes:
        """What tells a text from others."""

    def scratch_bytes(self, settings: Settings, text: Any) -> int:
        """What `cut` has on disk beside the model, at most."""
        return 0

    @abstractmethod
    def cut(
        self,
        settings: Settings,
        calibration: Any,
        judged: Any,
        work: Path,
        progress: Progress,
    ) -> Result:
        """Factorize the model, and judge it before and after."""

    @abstractmethod
    def assemble(self, result: Result, work: Path, folder: Path) -> None:
        """Write the folder of the model that `cut` left."""
