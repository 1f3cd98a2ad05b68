"""What a labelled data set is here: texts, perhaps their pairs, and integer labels."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Examples:
    """Labelled texts of one split.

    Attributes:
        texts: n strings.
        pairs: n second sentences for tasks about two texts, or None.
        labels: (n,) int32, positions in the task's label names.
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
    """A classification task: validation chooses, test is reported once."""

    name: str
    label_names: list[str]
    train: Examples
    validation: Examples
    test: Examples
