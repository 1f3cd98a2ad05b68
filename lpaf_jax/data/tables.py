"""Tables of labelled texts: csv and tsv files with a header row, jsonl and parquet files."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpaf_jax.data.examples import Examples
from lpaf_jax.data.labels import MISSING, label_ids, label_values, sorted_names
from lpaf_jax.errors import LpafError

TEXT_COLUMN = "sentence"
LABEL_COLUMN = "label"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
FILES = ", ".join(SUFFIXES[:-1]) + f" or {SUFFIXES[-1]} file"


@dataclass(frozen=True)
class Table:
    """A table as strings: `rows` are as long as `columns`; `lines` are their places in the file.

    Places in a parquet file, which has no lines, are numbers of rows.
    """

    path: Path
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """The strings of one column.

        Raises:
            LpafError: there is no such column, or two of that name.
        """
        found = [i for i, column in enumerate(self.columns) if column == name]
        if len(found) != 1:
            problem = "no column" if not found else f"{len(found)} columns named"
            there = ", ".join(repr(column[:40]) for column in self.columns[:20])
            raise LpafError(f"{self.path} has {problem} {name!r}; its columns are {there}")
        return [row[found[0]] for row in self.rows]


def read_table(path: str | Path) -> Table:
    """Read a file of rows; blank lines are skipped.

    A csv or tsv file is UTF-8, and its first row names the columns. A jsonl file has an object a
    line, whose keys do. Values are strings here: nothing stands for null and for a key left out,
    and columns that hold lists or objects are left out.

    Tab-separated files are written in two ways, with and without csv quoting, and reading one as
    the other loses rows without a word: see `_tab_rows`.

    Raises:
        LpafError: not such a file, missing, unreadable, not UTF-8, malformed, or empty.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise LpafError(f"{path} is not a {FILES}; rename or convert it")
    if suffix == ".jsonl":
        return _of_records(path, _json_records(path))
    if suffix == ".parquet":
        columns = read_parquet(path)
        rows = zip(*columns.values(), strict=True)
        return _of_records(
            path, [(i, dict(zip(columns, row, strict=True))) for i, row in enumerate(rows, 1)]
        )
    return _delimited(path)


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """The columns of a parquet file, their values as they are.

    Raises:
        LpafError: it cannot be read.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        return dict(pyarrow.parquet.read_table(path).to_pydict())
    except FileNotFoundError:
        raise LpafError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from ValueError
        reason = str(error).strip().split("\n")[0]
        raise LpafError(f"{path} cannot be read as parquet: {reason}") from None


def _json_records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    records = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise LpafError(f"{path}, line {number}: no JSON: {error}") from None
            if not isinstance(record, dict):
                raise LpafError(f"{path}, line {number}: no JSON object")
            records.append((number, record))
    return records


def _of_records(path: Path, records: list[tuple[int, dict[str, Any]]]) -> Table:
    if not records:
        raise LpafError(f"{path} is empty; it needs at least one row of data")
    items = [item for _, record in records for item in record.items()]
    nested = {name for name, value in items if isinstance(value, (dict, list))}
    names = [name for name in dict.fromkeys(name for name, _ in items) if name not in nested]
    rows = [
        ["" if record.get(name) is None else str(record[name]) for name in names]
        for _, record in records
    ]
    return Table(path, names, rows, [number for number, _ in records])


def _delimited(path: Path) -> Table:
    text = _read_text(path)
    parse = _tab_rows if path.suffix.lower() == ".tsv" else _comma_rows
    try:
        numbered = [(line, row) for line, row in parse(text) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise LpafError(
            f"{path} is malformed: {error}; is a quote left open or not doubled?"
        ) from None
    if not numbered:
        raise LpafError(f"{path} is empty; it needs a header row and at least one row of data")
    columns = [cell.strip() for cell in numbered[0][1]]
    for line, row in numbered[1:]:
        if len(row) != len(columns):
            raise LpafError(
                f"{path}, line {line}: {len(row)} fields where the header names {len(columns)}"
            )
    if len(numbered) == 1:
        raise LpafError(f"{path} has a header but no rows of data")
    lines, rows = zip(*numbered[1:], strict=True)
    return Table(path, columns, list(rows), list(lines))


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise LpafError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise LpafError(
            f"{path} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}); "
            "save it as UTF-8"
        ) from None
    except OSError as error:
        raise LpafError(f"{path} cannot be read: {error.strerror or error}") from None


def _quoted_rows(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    # The limit is a global of the csv module, and far below the length of a document.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for row in reader:
            rows.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"{error}, in the row that starts at line {start}") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _comma_rows(text: str) -> list[tuple[int, list[str]]]:
    return _quoted_rows(text, ",")


def _tab_rows(text: str) -> list[tuple[int, list[str]]]:
    """Rows of a tab-separated text, quoted as csv or not quoted at all.

    A raw file may hold a field such as `"so` that a csv reader would take for an opening quote and
    then swallow the following rows; a quoted one doubles its quotes. If every line has as many
    fields as the header, each line is a row, and quotes are removed only if every field that holds
    one is quoted properly. Otherwise fields span lines or hold tabs, which takes a csv reader.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    rows = [(i, line.split("\t")) for i, line in enumerate(lines, start=1) if line.strip()]
    if len({len(row) for _, row in rows}) > 1:
        try:
            return _quoted_rows(text, "\t")
        except csv.Error:
            return rows  # not quoted either: the line with the wrong count is the better news
    with_quotes = [cell for _, row in rows for cell in row if '"' in cell]
    if with_quotes and all(_is_quoted(cell) for cell in with_quotes):
        return [(i, [_unquote(cell) for cell in row]) for i, row in rows]
    return rows


def _is_quoted(cell: str) -> bool:
    inner = cell[1:-1].replace('""', "")
    return len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inner


def _unquote(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if '"' in cell else cell


def table_texts(path: str | Path, column: str) -> list[str]:
    """The texts of a column as they stand, without blank ones; raises as `read_table` does."""
    return [text for text in read_table(path).column(column) if text.strip()]


def read_examples(
    path: str | Path,
    text_column: str = TEXT_COLUMN,
    label_column: str = LABEL_COLUMN,
    pair_column: str | None = None,
    label_names: Sequence[str] | None = None,
    regression: bool = False,
) -> Examples:
    """Every row of a file as a labelled example, in the order of the file.

    Args:
        path: a file that `read_table` reads.
        text_column: the column of the text.
        label_column: the column of the label: names or integers.
        pair_column: the column of the second text, for tasks about two texts.
        label_names: the names a model knows; the file may hold these names or their positions
            0, 1, .... Without it the distinct labels of the file, sorted, are the names.
        regression: the labels are numbers as they stand, with no names.

    Raises:
        LpafError: the file is missing or malformed, a column is unknown, a text or label is
            missing, a label is none of `label_names`, or no number where one is needed.
    """
    table = read_table(path)
    return examples_of(table, text_column, label_column, pair_column, label_names, regression)[0]


def examples_of(
    table: Table,
    text_column: str,
    label_column: str,
    pair_column: str | None,
    label_names: Sequence[str] | None,
    regression: bool = False,
) -> tuple[Examples, list[str]]:
    """The examples of a table and the label names, which are found in it where none are given.

    Labels of a regression are numbers and have no names.
    """
    # A person may well have written the word null: in a text only nothing at all is missing.
    nothing = frozenset({""})
    texts = _present(table, text_column, nothing)
    labels = _present(table, label_column, MISSING)
    pairs = None if pair_column is None else _present(table, pair_column, nothing)
    where = f"{table.path}, column {label_column!r}"
    if regression:
        return Examples(texts, pairs, label_values(labels, where)), []
    names = sorted_names(labels) if label_names is None else list(label_names)
    return Examples(texts, pairs, label_ids(labels, names, where)), names


def _present(table: Table, name: str, missing: frozenset[str]) -> list[str]:
    cells = [cell.strip() for cell in table.column(name)]
    for line, cell in zip(table.lines, cells, strict=True):
        if cell.lower() in missing:
            place = "row" if table.path.suffix.lower() == ".parquet" else "line"
            raise LpafError(
                f"{table.path}, {place} {line}: no value in column {name!r} ({cell!r}); "
                "fill it in or remove the row"
            )
    return cells
