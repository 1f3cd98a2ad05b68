"""The tasks of GLUE, from the hub or a local copy.

A. Wang et al., GLUE: A multi-task benchmark and analysis platform for natural language
understanding, 2019.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lpaf_jax.data.examples import METRICS, Examples, Kind
from lpaf_jax.data.labels import label_ids, label_values
from lpaf_jax.data.tables import SUFFIXES, read_table
from lpaf_jax.errors import LpafError

HUB_ID = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """How a task is published.

    Attributes:
        text: column of the text.
        pair: column of the second text.
        label_names: in the order of their integers; empty for a regression.
        metrics: what GLUE reports for the task, the primary one first.
        held_out: the split that has public labels.
        config: the task's name on the hub, where it is another.
        archive: what GLUE's own archive calls a column, where the hub's name is another.
        headless: columns of the archive's files, where these do not name them.
    """

    text: str
    pair: str | None
    label_names: tuple[str, ...]
    metrics: tuple[str, ...] = METRICS["classification"]
    held_out: str = "validation"
    config: str | None = None
    archive: Mapping[str, str] = field(default_factory=dict)
    headless: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        return "classification" if self.label_names else "regression"


_MNLI = GlueTask(
    "premise",
    "hypothesis",
    ("entailment", "neutral", "contradiction"),
    held_out="validation_matched",
    archive={"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
)

GLUE = {
    "sst2": GlueTask("sentence", None, ("negative", "positive")),
    "cola": GlueTask(
        "sentence",
        None,
        ("unacceptable", "acceptable"),
        metrics=("mcc", "accuracy"),
        headless=("source", "label", "star", "sentence"),
    ),
    "mrpc": GlueTask(
        "sentence1",
        "sentence2",
        ("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        archive={"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
    ),
    "qqp": GlueTask(
        "question1",
        "question2",
        ("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        archive={"label": "is_duplicate"},
    ),
    "qnli": GlueTask("question", "sentence", ("entailment", "not_entailment")),
    "rte": GlueTask("sentence1", "sentence2", ("entailment", "not_entailment")),
    "wnli": GlueTask("sentence1", "sentence2", ("not_entailment", "entailment")),
    "mnli": _MNLI,
    # The same training examples, tested on genres that these do not have.
    "mnli_mismatched": replace(_MNLI, held_out="validation_mismatched", config="mnli"),
    "stsb": GlueTask(
        "sentence1",
        "sentence2",
        (),
        metrics=METRICS["regression"],
        archive={"label": "score"},
    ),
}


# A split by its name: column name to the values of the column.
Splits = Callable[[str], Mapping[str, Sequence[Any]]]


def glue(name: str, data: str | Path | None = None) -> tuple[Examples, Examples]:
    """The official training and validation examples of a GLUE task, as they are.

    Args:
        name: a key of `GLUE`.
        data: a local copy instead of the hub: a folder that `datasets` saved, or one that holds
            the two splits as parquet, csv or tsv files named after them, also as GLUE's own
            archives have them (dev.tsv for validation.tsv).

    Raises:
        LpafError: the hub cannot be reached, or the copy is missing, incomplete or unreadable.
    """
    task = GLUE[name]
    splits = _from_hub(name) if data is None else _from_folder(Path(data), task)
    where = HUB_ID if data is None else str(data)
    return (
        _examples(splits("train"), task, f"{where}, split train"),
        _examples(splits(task.held_out), task, f"{where}, split {task.held_out}"),
    )


def _examples(columns: Mapping[str, Sequence[Any]], task: GlueTask, where: str) -> Examples:
    wanted = [task.text, "label", *([task.pair] if task.pair else [])]
    values: dict[str, list[str]] = {}
    for column in wanted:
        there = column if column in columns else task.archive.get(column, column)
        if there not in columns:
            raise LpafError(f"{where}: no column {column!r}; there are {', '.join(columns)}")
        if any(value is None for value in columns[there]):
            raise LpafError(f"{where}: a value is missing in column {there!r}")
        values[column] = [str(value) for value in columns[there]]
    return Examples(
        texts=values[task.text],
        pairs=values[task.pair] if task.pair else None,
        labels=label_ids(values["label"], task.label_names, where)
        if task.label_names
        else label_values(values["label"], where),
    )


def _from_hub(name: str) -> Splits:
    import datasets

    try:
        with _quiet(datasets):
            loaded = datasets.load_dataset(HUB_ID, GLUE[name].config or name)
    except Exception as error:  # offline, blocked, renamed: the kinds change with the library
        raise LpafError(
            f"task {name} cannot be fetched from the hub ({HUB_ID}: {_first_line(error)}); "
            "name a local copy with data=FOLDER (--data FOLDER)"
        ) from None
    return _of_datasets(loaded, HUB_ID)


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Silence progress bars and the warning of every retry: the outcome is told once, by us."""
    bars = datasets.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def _from_folder(folder: Path, task: GlueTask) -> Splits:
    if not folder.is_dir():
        raise LpafError(f"{folder} is not a folder; a local copy of a GLUE task is one")
    if not (folder / "dataset_dict.json").exists():
        return lambda split: _read_file(_split_file(folder, split), task)
    import datasets

    try:
        with _quiet(datasets):
            saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged copy raises whatever its reader does
        raise LpafError(f"{folder} cannot be read by datasets: {_first_line(error)}") from None
    return _of_datasets(saved, str(folder))


def _of_datasets(saved: Any, where: str) -> Splits:
    def split(name: str) -> Mapping[str, Sequence[Any]]:
        if name not in saved:
            raise LpafError(f"{where} has no split {name!r}; it has {', '.join(saved)}")
        return {column: list(saved[name][column]) for column in saved[name].column_names}

    return split


def _split_file(folder: Path, split: str) -> Path:
    # What the hub calls a split of one file, and GLUE's own archive a validation split.
    stems = dict.fromkeys((split, f"{split}-00000-of-00001", split.replace("validation", "dev")))
    paths = [folder / f"{stem}{suffix}" for stem in stems for suffix in (".parquet", *SUFFIXES)]
    found = [path for path in paths if path.exists()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no file"
        raise LpafError(
            f"{folder} holds {names} for the split {split!r}; "
            f"it needs one {split}.parquet, {split}.csv or {split}.tsv"
            + (f", or {split.replace('validation', 'dev')}.tsv" if split != "train" else "")
        )
    return found[0]


def _read_file(path: Path, task: GlueTask) -> Mapping[str, Sequence[Any]]:
    if path.suffix in SUFFIXES:
        table = read_table(path)
        if len(table.columns) == len(task.headless) and task.text not in table.columns:
            rows = zip(table.columns, *table.rows, strict=True)
            return dict(zip(task.headless, rows, strict=True))
        return {column: table.column(column) for column in table.columns}
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        return dict(pyarrow.parquet.read_table(path).to_pydict())
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from ValueError
        raise LpafError(f"{path} cannot be read as parquet: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
