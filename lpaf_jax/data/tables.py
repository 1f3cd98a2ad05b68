"""Tables of labelled texts: csv and tsv files with a header row, JSON records and parquet files."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data.contents import read_text, refuse_packed
from lpaf_jax.data.examples import Examples, unlabelled
from lpaf_jax.data.labels import label_ids, label_values, missing, sorted_names
from lpaf_jax.data.records import json_records, parquet_columns, parquet_values
from lpaf_jax.data.split import evenly
from lpaf_jax.data.values import decoded_column, refuse_nested

TEXT_COLUMN = "sentence"
LABEL_COLUMN = "label"
_JSON = (".json", ".jsonl", ".ndjson")
SUFFIXES = (".json", ".ndjson", ".csv", ".tsv", ".jsonl", ".parquet")
FILES = ", ".join(SUFFIXES[:-1]) + f" or {SUFFIXES[-1]} file"

# Of the rows that an error is about, so many are named.
_NAMED = 5


@dataclass(frozen=True)
class Table:
    """A file of rows.

    Attributes:
        path: of the file.
        columns: their names, in order.
        lines: where each row is in the file.
        place: what `lines` count: "line"; "row" in a parquet file, which has none; "record" in a
            JSON array, which may have but one.
        read: the values of a column by its position, as the file stores them.
        broken: lines of the file that are no rows of its columns and were left out.
    """

    path: Path
    columns: list[str]
    lines: list[int]
    place: str
    read: Callable[[int], list[Any]]
    broken: int = 0

    def where(self, rows: Sequence[int], column: str | None = None) -> str:
        """The file, and where in it some of its rows are."""
        of_column = "" if column is None else f", column {column!r}"
        return f"{self.path}, {places([self.lines[i] for i in rows], self.place)}{of_column}"

    def values(self, name: str) -> list[Any]:
        """The values of one column: None for nothing, bytes as UTF-8, the rest as they are.

        Raises:
            LpafError: there is no such column, or two of that name; bytes that are not UTF-8.
        """
        found = [i for i, column in enumerate(self.columns) if column == name]
        if len(found) != 1:
            problem = "no column" if not found else f"{len(found)} columns named"
            there = ", ".join(repr(column[:40]) for column in self.columns[:20])
            mend = "" if not found else "; give them different names"
            if not found and name in ("sentence", "label"):  # the usual ones, which nobody named
                option = "text" if name == "sentence" else name
                mend = f"; name the right one with --{option}-column"
            raise LpafError(f"{self.path} has {problem} {name!r}; its columns are {there}{mend}")
        return decoded_column(self.read(found[0]), name, self.where)

    def column(self, name: str, *, mend: str = "name another column") -> list[str]:
        """The strings of one column; nothing stands for null and for a key left out.

        Args:
            name: of the column.
            mend: what is to be done where the column holds lists or objects.

        Raises:
            LpafError: as `values`, or the column holds lists or objects.
        """
        values = self.values(name)
        refuse_nested(values, name, self.where, mend)
        return ["" if value is None else str(value) for value in values]


def places(numbers: Sequence[int], what: str) -> str:
    """`line 7`, or `lines 7, 9, 12, 30, 31 and 8 more`."""
    named = [str(number) for number in numbers[:_NAMED]]
    more = len(numbers) - len(named)
    last = [f"{more} more"] if more else named[1:][-1:]
    first = named if more or len(named) == 1 else named[:-1]
    listed = " and ".join([", ".join(first), *last])
    return f"{what}{'s' if len(numbers) > 1 else ''} {listed}"


def read_table(path: str | Path, *, skip_broken: bool = False) -> Table:
    """Read a file of rows; blank lines are skipped.

    A csv or tsv file is UTF-8, and its first row names the columns. A json, ndjson or jsonl
    file has an object a line, or an array of them, whose keys do.

    Tab-separated files are written in two ways, with and without csv quoting, and reading one as
    the other loses rows without a word: see `_tab_rows`.

    Args:
        path: of the file.
        skip_broken: leave out the rows of a csv or tsv file that have more or fewer fields than
            the header, unless these are the most, and count them.

    Raises:
        LpafError: not such a file, missing, unreadable, packed, not UTF-8, malformed, or empty.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        refuse_packed(path)
        raise LpafError(f"{path} is not a {FILES}; rename or convert it")
    if suffix == ".parquet":
        return _of_parquet(path)
    text = read_text(path)
    if suffix in _JSON:
        return _of_json(path, text)
    return _delimited(path, text, skip_broken)


def _of_parquet(path: Path) -> Table:
    columns = parquet_columns(path)
    count = len(columns[0][1]) if columns else 0
    _check_filled(path, count)
    return Table(
        path,
        [name for name, _ in columns],
        list(range(1, count + 1)),
        "row",
        lambda i: parquet_values(path, *columns[i]),
    )


def _of_json(path: Path, text: str) -> Table:
    records, lines = json_records(path, text)
    _check_filled(path, len(records))
    names = list(dict.fromkeys(name for record in records for name in record))
    return Table(
        path,
        names,
        list(range(1, len(records) + 1)) if lines is None else lines,
        "record" if lines is None else "line",
        lambda i: [record.get(names[i]) for record in records],
    )


def _check_filled(path: Path, rows: int) -> None:
    if not rows:
        raise LpafError(f"{path} is empty; it needs at least one row of data")


def _delimited(path: Path, text: str, skip_broken: bool) -> Table:
    is_tsv = path.suffix.lower() == ".tsv"
    try:
        rows = _tab_rows(text, skip_broken) if is_tsv else _quoted_rows(text, ",")
    except csv.Error as error:
        raise LpafError(
            f"{path} is malformed: {error}; is a quote left open or not doubled?"
        ) from None
    numbered = [(line, row) for line, row in rows if any(cell.strip() for cell in row)]
    if not numbered:
        raise LpafError(f"{path} is empty; it needs a header row and at least one row of data")
    columns = [cell.strip() for cell in numbered[0][1]]
    whole = [(line, row) for line, row in numbered[1:] if len(row) == len(columns)]
    broken = len(numbered) - 1 - len(whole)
    if broken and (not skip_broken or broken > len(whole)):
        line, row = next(item for item in numbered[1:] if len(item[1]) != len(columns))
        raise LpafError(
            f"{path}, line {line}: {len(row)} fields where the header names {len(columns)}"
        )
    if len(numbered) == 1:
        raise LpafError(f"{path} has a header but no rows of data")
    return Table(
        path,
        columns,
        [line for line, _ in whole],
        "line",
        lambda i: [row[i] for _, row in whole],
        broken,
    )


def _quoted_rows(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    # The limit is a global of the csv module, and far below the length of a document.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for row in reader:
            if row:
                rows.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"{error}, in the row that starts at line {start}") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _tab_rows(text: str, skip_broken: bool) -> list[tuple[int, list[str]]]:
    """Rows of a tab-separated text, quoted as csv or not quoted at all.

    A raw file may hold a field such as `"so` that a csv reader would take for an opening quote and
    then swallow the following rows; a quoted one doubles its quotes. If every line has as many
    fields as the header, each line is a row, and quotes are removed only if every field that holds
    one is quoted properly. Otherwise fields may span lines or hold tabs, which takes a csv reader.
    Where broken rows are left out, it is believed only if it finds none: what it took for a quoted
    field may be many rows.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    rows = [(i, line.split("\t")) for i, line in enumerate(lines, start=1) if line.strip()]
    if _whole(rows) < len(rows):
        try:
            quoted = _quoted_rows(text, "\t")
        except csv.Error:  # not quoted either: the line with the wrong count is the better news
            return rows
        if not skip_broken or _whole(quoted) == len(quoted):
            return quoted
    with_quotes = [cell for _, row in rows for cell in row if '"' in cell]
    if with_quotes and all(_is_quoted(cell) for cell in with_quotes):
        return [(i, [_unquote(cell) for cell in row]) for i, row in rows]
    return rows


def _whole(rows: list[tuple[int, list[str]]]) -> int:
    """How many rows have as many fields as the first."""
    return sum(len(row) == len(rows[0][1]) for _, row in rows)


def _is_quoted(cell: str) -> bool:
    inner = cell[1:-1].replace('""', "")
    return len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inner


def _unquote(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if '"' in cell else cell


def table_texts(path: str | Path, column: str) -> list[str]:
    """The texts of a column as they stand, without blank ones; raises as `read_table` does."""
    return [text for text in read_table(path).column(column) if text.strip()]


def text_lines(path: Path, column: str, count: int) -> Examples:
    """Texts without labels: the lines of a text file, or a column of a table; none of them blank.

    Args:
        path: of a table where its ending says so.
        column: of the table.
        count: so many at most, spread over the file, which is often sorted: its first lines alone
            would be of one kind.

    Raises:
        LpafError: the file cannot be read, or holds no text.
    """
    if path.suffix.lower() in SUFFIXES:
        lines = table_texts(path, column)
    else:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise LpafError(f"{path} contains no text")
    return unlabelled(spread(lines, count))


def spread(texts: Sequence[str], count: int) -> list[str]:
    """`count` of the texts, the first and the last among them, or all where there are fewer."""
    return [texts[i] for i in evenly(len(texts), count)]


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
    texts = _texts(table, text_column)
    labels = _labels(table, label_column, label_names or (), regression)
    pairs = None if pair_column is None else _texts(table, pair_column)
    where = partial(table.where, column=label_column)
    if regression:
        return Examples(texts, pairs, label_values(labels, where)), []
    names = sorted_names(labels) if label_names is None else list(label_names)
    return Examples(texts, pairs, label_ids(labels, names, where)), names


def _texts(table: Table, name: str) -> list[str]:
    cells = [cell.strip() for cell in table.column(name, mend="join its parts into one text")]
    # A person may well have written the word null: in a text only nothing at all is missing.
    absent = [i for i, cell in enumerate(cells) if not cell]
    if absent:
        raise _no_value(table, name, absent, "")
    return cells


def _labels(table: Table, name: str, known: Sequence[str], regression: bool) -> list[str]:
    mend = "several labels per text (multi-label) are not supported; keep one"
    cells = [cell.strip() for cell in table.column(name, mend=mend)]
    absent = missing(cells, known)
    if absent:
        word = next((cells[i] for i in absent if cells[i]), "")
        is_class = f"; if {word!r} is a class, rename it, as this word marks a missing value"
        raise _no_value(table, name, absent, word, is_class if word and not regression else "")
    return cells


def _no_value(table: Table, name: str, rows: list[int], word: str, more: str = "") -> LpafError:
    rest = f"no value in column {name!r} ({word!r}); fill it in or remove the row{more}"
    return LpafError(f"{table.where(rows)}: {rest}")
