"""Label names, and the numbers a model is trained on."""

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data.split import normalise

# Names the file, and the rows of it at some positions.
Where = Callable[[Sequence[int]], str]

# What spreadsheets, data frames and databases write for a value that is not there.
_MISSING = frozenset({"", "nan", "<na>", "null", "#n/a", "\\n"})
# Words that may be classes among words, but are no value among numbers.
_NO_NUMBER = frozenset({"none", "na", "n/a", "nil", "?"})
# The square of a larger error is beyond float32.
_LARGEST = 1e18

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"([+-]?\d+)\.0*")
# A list as csv files hold it: of numbers, or of strings in quotes.
_LIST = re.compile(r"""\[[\s\d.,+-]*\]|\[\s*(["']).*\1\s*\]""", re.DOTALL)


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


def missing(labels: Sequence[str], known: Sequence[str] = ()) -> list[int]:
    """Positions of the labels that stand for no value; those that are `known` names never do."""
    lower = [label.lower() for label in labels]
    words = _MISSING
    given = set(lower) - _MISSING - _NO_NUMBER
    if given and all(_NUMBER.fullmatch(label) for label in given):
        words |= _NO_NUMBER
    kept = set(known)
    return [i for i, label in enumerate(lower) if label in words and labels[i] not in kept]


def check_names(names: Sequence[str], ids: np.ndarray, where: Where) -> None:
    """Raise LpafError if names that were found in a file are not all meant as classes.

    Args:
        names: of the classes.
        ids: (n,) positions in `names`.
        where: names rows at some positions.
    """

    def rows(name: str) -> str:
        return where(np.flatnonzero(ids == names.index(name)).tolist())

    alike: dict[str | float, str] = {}
    for name in names:
        if _LIST.fullmatch(name):
            raise LpafError(
                f"{rows(name)}: label {name[:40]!r} is a list; several labels per text "
                "(multi-label) are not supported; keep one"
            )
        other = alike.setdefault(_plain(name), name)
        if other != name:
            few, many = sorted((other, name), key=lambda one: (ids == names.index(one)).sum())
            raise LpafError(
                f"{rows(few)}: label {few!r} beside {many!r} elsewhere; write the class in one "
                "way, or rename one if they are two classes"
            )
    if "-" in names and "+" not in names:
        raise LpafError(
            f"{rows('-')}: label '-' marks a missing label, as in SNLI and MNLI; remove these "
            "rows, or rename it if it is a class"
        )
    if "-1" in names and not _may_be_negative(names):
        raise LpafError(
            f"{rows('-1')}: label '-1' marks a missing label, as in test splits on the hub; "
            "remove these rows, or give the class a word as its name"
        )


def _plain(name: str) -> str | float:
    """What two ways to write a class have in common: the number, or the letters in one case."""
    if _NUMBER.fullmatch(name):
        return float(name)
    return unicodedata.normalize("NFKC", normalise(name))


def _may_be_negative(names: Sequence[str]) -> bool:
    """Whether -1 is a class: beside 1 alone, other negative numbers, or fractions."""
    others = [float(name) for name in names if name != "-1" and _NUMBER.fullmatch(name)]
    return others == [1] == [1] * (len(names) - 1) or any(
        number < 0 or not number.is_integer() for number in others
    )


def label_ids(labels: Sequence[str], names: Sequence[str], where: Where) -> np.ndarray:
    """Positions of the labels in `names`, (n,) int32.

    Labels may be the names or their positions 0, 1, ..., unless names hold other numbers: where
    they are numbers themselves, or as in "1 star", "2 stars", a position may mean another class.

    Raises:
        LpafError: a label is neither; `where` says in which rows of which file.
    """
    ids = {canonical(name): i for i, name in enumerate(names)}
    if not (any(_NUMBER.fullmatch(name) for name in names) or _numbered_otherwise(names)):
        ids |= {str(i): i for i in range(len(names))}
    given = [canonical(label) for label in labels]
    unknown = sorted({label for label in given if label not in ids})
    if unknown:
        shown = ", ".join(repr(label[:40]) for label in unknown[:5])
        known = ", ".join(repr(label) for label in ids)
        rows = where([i for i, label in enumerate(given) if label not in ids])
        raise LpafError(f"{rows}: unknown label {shown}; expected one of {known}")
    return np.array([ids[label] for label in given], dtype=np.int32)


def _numbered_otherwise(names: Sequence[str]) -> bool:
    """Whether every name holds one number, and these are not the positions."""
    found = [re.findall(r"\d+", name) for name in names]
    one_each = all(len(numbers) == 1 for numbers in found)
    return one_each and any(int(numbers[0]) != i for i, numbers in enumerate(found))


def label_values(labels: Sequence[str], where: Where) -> np.ndarray:
    """The labels of a regression as numbers, (n,) float32.

    Raises:
        LpafError: a label is no number, or too large; `where` says in which rows of which file.
    """
    unknown = [i for i, label in enumerate(labels) if not _NUMBER.fullmatch(label.strip())]
    if unknown:
        shown = ", ".join(repr(label[:40]) for label in sorted({labels[i] for i in unknown})[:5])
        raise LpafError(f"{where(unknown)}: {shown} where a regression needs a number")
    values = np.array([float(label) for label in labels], dtype=np.float64)
    large = np.flatnonzero(np.abs(values) > _LARGEST).tolist()
    if large:
        raise LpafError(
            f"{where(large)}: {labels[large[0]][:40]} is too large for squared errors in float32; "
            f"scale the labels to at most {_LARGEST:.0e}"
        )
    return values.astype(np.float32)
