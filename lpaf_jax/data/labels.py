"""Label names, and the numbers a model is trained on."""

import re
from collections.abc import Sequence

import numpy as np

from lpaf_jax.errors import LpafError

# What spreadsheets and data frames write for a value that is not there.
MISSING = frozenset({"", "nan", "<na>", "null"})

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"([+-]?\d+)\.0*")


def canonical(label: str) -> str:
    """The label without the `.0` a data frame adds when an integer column had gaps."""
    whole = _WHOLE.fullmatch(label.strip())
    return whole.group(1) if whole else label.strip()


def sorted_names(labels: Sequence[str]) -> list[str]:
    """The distinct labels, by value if all are numbers, else by name."""
    names = sorted({canonical(label) for label in labels})
    if all(_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=float)
    return names


def label_ids(labels: Sequence[str], names: Sequence[str], where: str) -> np.ndarray:
    """Positions of the labels in `names`, (n,) int32.

    Labels may be the names or, unless names are numbers themselves, their positions 0, 1, ....

    Raises:
        LpafError: a label is neither; `where` says in which file and column.
    """
    ids = {name: i for i, name in enumerate(names)}
    if not any(_NUMBER.fullmatch(name) for name in names):
        ids |= {str(i): i for i in range(len(names))}
    given = [canonical(label) for label in labels]
    unknown = sorted({label for label in given if label not in ids})
    if unknown:
        shown = ", ".join(repr(label[:40]) for label in unknown[:5])
        known = ", ".join(repr(label) for label in ids)
        raise LpafError(f"{where}: unknown label {shown}; expected one of {known}")
    return np.array([ids[label] for label in given], dtype=np.int32)


def label_values(labels: Sequence[str], where: str) -> np.ndarray:
    """The labels of a regression as numbers, (n,) float32.

    Raises:
        LpafError: a label is no number; `where` says in which file and column.
    """
    unknown = sorted({label for label in labels if not _NUMBER.fullmatch(label.strip())})
    if unknown:
        shown = ", ".join(repr(label[:40]) for label in unknown[:5])
        raise LpafError(f"{where}: {shown} where a regression needs a number")
    return np.array([float(label) for label in labels], dtype=np.float32)
