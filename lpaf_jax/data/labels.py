"""Label names, and the integers a model is trained on."""

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

    Labels may be the names or, if some label is no name, the positions 0, 1, ... themselves.

    Raises:
        LpafError: a label is neither; `where` says in which file and column.
    """
    by_name = {name: i for i, name in enumerate(names)}
    given = [canonical(label) for label in labels]
    if not all(label in by_name for label in given):
        by_position = {str(i): i for i in range(len(names))}
        if all(label in by_position for label in given):
            by_name = by_position
    unknown = sorted({label for label in given if label not in by_name})
    if unknown:
        known = ", ".join(repr(name) for name in names)
        shown = ", ".join(repr(label[:40]) for label in unknown[:5])
        raise LpafError(
            f"{where}: unknown labels {shown}; expected the names {known} or 0 to {len(names) - 1}"
        )
    return np.array([by_name[label] for label in given], dtype=np.int32)
