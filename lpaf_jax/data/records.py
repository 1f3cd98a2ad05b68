"""Records: the rows of JSON and parquet files."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data.contents import check_unpacked
from lpaf_jax.data.values import json_object

_SPACE = re.compile(r"\s*")


def json_records(path: Path, text: str) -> tuple[list[dict[str, Any]], list[int] | None]:
    """The objects of a JSON text, and the lines they begin at; None for those of an array.

    The content decides, not the name: they are one after the other, usually one a line, or the
    elements of one array, which often has but one line.

    Raises:
        LpafError: malformed, or with other values than objects; one object that stands for all
            rows, by columns or by a key.
    """
    lines: list[int] = []
    records: list[dict[str, Any]] = []
    line, before = 1, 0
    for start, value in _values(text):
        line, before = line + text.count("\n", before, start), start
        if isinstance(value, ValueError | RecursionError):
            raise LpafError(f"{path}, line {line}: not JSON: {value}") from None
        if not isinstance(value, dict):
            raise LpafError(f"{path}, line {line}: not a JSON object")
        lines.append(line)
        records.append(value)
    is_array = text.startswith("[", _skip(text, 0))
    if (
        len(records) == 1
        and not is_array
        and path.suffix.lower() == ".json"
        and _nested(records[0])
    ):
        keys = ", ".join(repr(key[:40]) for key in list(records[0])[:5])
        raise LpafError(
            f"{path} is one JSON object ({keys}), not rows; it needs an array of objects, or one "
            "object per line"
        )
    return records, None if is_array else lines


def _values(text: str) -> Iterator[tuple[int, Any]]:
    """Where each value begins, and the value; a last one that is no JSON is the error."""
    decoder = json.JSONDecoder(object_pairs_hook=json_object)
    start = _skip(text, 0)
    is_array = text[start : start + 1] == "["
    if is_array:
        start = _skip(text, start + 1)
        if text[start : start + 1] == "]":
            start = _skip(text, start + 1)
            is_array = False
    while start < len(text) or is_array:
        try:
            value, end = decoder.raw_decode(text, start)
            yield start, value
            start = _skip(text, end)
            if is_array:
                mark = text[start : start + 1]
                if mark not in (",", "]"):
                    raise json.JSONDecodeError("Expecting ',' or ']'", text, start)
                start = _skip(text, start + 1)
                is_array = mark == ","
                if not is_array and start < len(text):
                    raise json.JSONDecodeError("Extra data after the array", text, start)
        except (ValueError, RecursionError) as error:
            yield start, error
            return


def _skip(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    assert space is not None
    return space.end()


def _nested(record: dict[str, Any]) -> bool:
    return any(isinstance(value, (dict, list)) for value in record.values())


def parquet_columns(path: Path) -> list[tuple[str, Any]]:
    """Names and pyarrow columns of a parquet file, or of a folder of them.

    Raises:
        LpafError: it cannot be read.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    check_unpacked(path)
    try:
        if path.is_dir():
            table = pq.read_table(path)
        else:
            with pq.ParquetFile(path) as file:  # which two columns of one name do not stop
                table = file.read()
    except FileNotFoundError:
        raise LpafError(f"{path} does not exist") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).strip().split("\n")[0]
        raise LpafError(f"{path} cannot be read as parquet: {reason}") from None
    return list(zip(table.column_names, table.columns, strict=True))


def parquet_values(path: Path, name: str, column: Any) -> list[Any]:
    """The values of a pyarrow column; strings that are not UTF-8 stay bytes.

    Raises:
        LpafError: such strings in lists or objects.
    """
    import pyarrow as pa

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        try:
            return list(column.cast(pa.large_binary()).to_pylist())
        except pa.ArrowException:
            raise LpafError(f"{path}: strings in column {name!r} are not UTF-8") from None
