"""Strings out of what files store: bytes, halves of characters, keys given twice."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lpaf_jax.core.errors import LpafError

# What stands for the value of a key that an object names twice.
TWICE = object()

_HALF = re.compile("[\ud800-\udfff]")


def whole_characters(value: Any) -> Any:
    r"""The value with U+FFFD for half a character, which JSON can write (`"\ud83d"`).

    UTF-8 has no bytes for one, so no tokenizer takes it. Lengths stay as they are.
    """
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, list):
        return [whole_characters(item) for item in value]
    return value


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What a JSON decoder makes of an object here, as its `object_pairs_hook`."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        key = whole_characters(key)
        found[key] = TWICE if key in found else whole_characters(value)
    return found


def decoded(value: Any) -> Any:
    """The value with bytes as UTF-8, at any depth; zeros that fill a fixed width up are left out.

    Raises:
        UnicodeDecodeError: they are not UTF-8.
    """
    if isinstance(value, bytes):
        return value.rstrip(b"\0").decode()
    if isinstance(value, (list, tuple)):
        return [decoded(item) for item in value]
    if isinstance(value, dict):
        return {name: decoded(item) for name, item in value.items()}
    return value


def decoded_column(
    values: Sequence[Any], name: str, where: Callable[[Sequence[int]], str]
) -> list[Any]:
    """The values of the column `name`, bytes decoded; `where` names the rows at some positions.

    Raises:
        LpafError: bytes that are not UTF-8, or a key that an object names twice.
    """
    found = []
    for i, value in enumerate(values):
        if value is TWICE:
            raise LpafError(f"{where([i])}: two values named {name!r}; keep only one")
        try:
            found.append(decoded(value))
        except UnicodeDecodeError as error:
            raise LpafError(
                f"{where([i])}: bytes in column {name!r} are not UTF-8 (byte {error.start} is "
                f"0x{error.object[error.start]:02x}); save them as UTF-8"
            ) from None
    return found


def refuse_nested(
    values: Sequence[Any], name: str, where: Callable[[Sequence[int]], str], mend: str
) -> None:
    """Raise LpafError if one of the values is a list or an object; `mend` says what to do."""
    for i, value in enumerate(values):
        if isinstance(value, (list, dict)):
            kind = "a list" if isinstance(value, list) else "an object"
            shown = repr(value)
            shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
            raise LpafError(
                f"{where([i])}: column {name!r} holds {kind}, {shown}, where one value is needed; "
                f"{mend}"
            )


class Columns(Mapping[str, list[Any]]):
    """Columns by their names, each read when it is asked for.

    Args:
        names: of the columns.
        read: gives the values of one.
        left_out: rows of the file that are in none of them.
    """

    def __init__(
        self, names: Sequence[str], read: Callable[[str], list[Any]], left_out: int = 0
    ) -> None:
        self._names, self._read, self.left_out = dict.fromkeys(names), read, left_out

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
