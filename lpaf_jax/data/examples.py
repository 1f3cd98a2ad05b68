"""What a labelled data set is here: texts, perhaps their pairs, and labels."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np

Kind = Literal["classification", "regression", "span", "language"]

# The metrics a task of each kind is judged by unless it names its own; the first is the primary.
METRICS: Mapping[Kind, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "span": ("f1", "exact"),
    "language": ("perplexity",),
}

# All others grow as a model gets better.
LESS_IS_BETTER = frozenset({"perplexity"})


@dataclass(frozen=True)
class Examples:
    """Labelled texts of one split.

    Attributes:
        texts: n strings.
        pairs: n second sentences for tasks about two texts, or None.
        labels: (n,) int32, positions in the task's label names; or (n,) float32, the values of a
            regression; (n, 0) of texts without any.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, positions: np.ndarray) -> "Examples":
        """The examples at `positions`, in that order."""
        chosen = [int(i) for i in positions]
        return Examples(
            texts=[self.texts[i] for i in chosen],
            pairs=None if self.pairs is None else [self.pairs[i] for i in chosen],
            labels=self.labels[chosen],
        )


@dataclass(frozen=True)
class Task:
    """A task: validation chooses, test is reported once.

    Attributes:
        label_names: names of the classes; empty unless the task is a classification.
        metrics: the official metrics, the primary one first; see `task_metrics`.
        repeats: rows of a file of classes that were left out; see `drop_repeats`.
        broken: lines of GLUE's own archive that were left out; see `glue`.
    """

    name: str
    label_names: list[str]
    train: Examples
    validation: Examples
    test: Examples
    _: KW_ONLY
    kind: Kind = "classification"
    metrics: tuple[str, ...] = METRICS["classification"]
    repeats: int = 0
    broken: int = 0

    @property
    def left_out(self) -> str | None:
        """What is to be said of rows that were left out, if any were."""
        if self.broken:
            return f"lines of the archive left out, as broken or without a label: {self.broken}"
        if self.repeats:
            return f"rows left out, as repeats or as one text of several labels: {self.repeats}"
        return None


def unlabelled(texts: list[str]) -> Examples:
    """Texts that have no labels: those are empty, (n, 0)."""
    return Examples(texts, None, np.zeros((len(texts), 0), dtype=np.int32))
