"""The classification tasks of GLUE, from the hub or a local copy.

A. Wang et al., GLUE: A multi-task benchmark and analysis platform for natural language
understanding, 2019.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpaf_jax.data.examples import Examples
from lpaf_jax.data.labels import label_ids
from lpaf_jax.data.tables import read_table
from lpaf_jax.errors import LpafError

HUB_ID = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """Columns, label names in the order of their integers, and the split that has public labels."""

    text: str
    pair: str | None
    label_names: tuple[str, ...]
    held_out: str = "validation"


GLUE = {
    "sst2": GlueTask("sentence", None, ("negative", "positive")),
    "cola": GlueTask("sentence", None, ("unacceptable", "acceptable")),
    "mrpc": GlueTask("sentence1", "sentence2", ("not_equivalent", "equivalent")),
    "qqp": GlueTask("question1", "question2", ("not_duplicate", "duplicate")),
    "qnli": GlueTask("question", "sentence", ("entailment", "not_entailment")),
    "rte": GlueTask("sentence1", "sentence2", ("entailment", "not_entailment")),
    "wnli": GlueTask("sentence1", "sentence2", ("not_entailment", "entailment")),
    "mnli": GlueTask(
        "premise", "hypothesis", ("entailment", "neutral", "contradiction"), "validation_matched"
    ),
}


# The values of one column of one split.
Columns = Callable[[str, str], Sequence[Any]]


def glue(name: str, data: str | Path | None = None) -> tuple[Examples, Examples]:
    """The official training and validation examples of a GLUE task, as they are.

    Args:
        name: a key of `GLUE`.
        data: a local copy instead of the hub: a folder that `datasets` saved, or one that holds
            the two splits as parquet, csv or tsv files named after them.

    Raises:
        LpafError: the hub cannot be reached, or the copy is missing, incomplete or unreadable.
    """
    task = GLUE[name]
    columns = _from_hub(name) if data is None else _from_folder(Path(data))
    where = HUB_ID if data is None else str(data)
    return _split(columns, "train", task, where), _split(columns, task.held_out, task, where)


def _split(columns: Columns, split: str, task: GlueTask, where: str) -> Examples:
    labels = [str(label) for label in columns(split, "label")]
    return Examples(
        texts=[str(text) for text in columns(split, task.text)],
        pairs=None if task.pair is None else [str(text) for text in columns(split, task.pair)],
        labels=label_ids(labels, task.label_names, f"{where}, split {split}"),
    )


def _from_hub(name: str) -> Columns:
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(HUB_ID, name)
    except Exception as error:  # offline, blocked, renamed: the kinds change with the library
        raise LpafError(
            f"task {name} cannot be fetched from the hub ({HUB_ID}: {_first_line(error)}); "
            "name a local copy with data=FOLDER (--data FOLDER)"
        ) from None
    finally:
        if bars:
            datasets.enable_progress_bars()
    return _of_splits(loaded, HUB_ID)


def _from_folder(folder: Path) -> Columns:
    if not folder.is_dir():
        raise LpafError(f"{folder} is not a folder; a local copy of a GLUE task is one")
    if not (folder / "dataset_dict.json").exists():
        return lambda split, column: _of_file(_split_file(folder, split), column)
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged copy raises whatever its reader does
        raise LpafError(f"{folder} cannot be read by datasets: {_first_line(error)}") from None
    return _of_splits(saved, str(folder))


def _of_splits(splits: Any, where: str) -> Columns:
    def columns(split: str, column: str) -> Sequence[Any]:
        if split not in splits:
            raise LpafError(f"{where} has no split {split!r}; it has {', '.join(splits)}")
        if column not in splits[split].column_names:
            there = ", ".join(splits[split].column_names)
            raise LpafError(f"{where}, split {split}: no column {column!r}; there are {there}")
        return list(splits[split][column])

    return columns


def _split_file(folder: Path, split: str) -> Path:
    found = sorted(
        path
        for suffix in (".parquet", ".csv", ".tsv")
        for path in (*folder.glob(f"{split}{suffix}"), *folder.glob(f"{split}-00000-of-*{suffix}"))
    )
    if len(found) != 1:
        problem = "no file" if not found else "more than one file"
        raise LpafError(
            f"{folder} holds {problem} for the split {split!r}; "
            f"it needs one {split}.parquet, {split}.csv or {split}.tsv"
        )
    return found[0]


def _of_file(path: Path, column: str) -> Sequence[Any]:
    if path.suffix != ".parquet":
        return read_table(path).column(column)
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from ValueError
        raise LpafError(f"{path} cannot be read as parquet: {_first_line(error)}") from None
    if column not in table.column_names:
        raise LpafError(f"{path} has no column {column!r}; there are {table.column_names}")
    return list(table.column(column).to_pylist())


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
