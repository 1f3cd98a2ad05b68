"""The tasks of GLUE, from the hub or a local copy.

A. Wang et al., GLUE: A multi-task benchmark and analysis platform for natural language
understanding, 2019.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data.examples import METRICS, Examples, Kind
from lpaf_jax.data.labels import label_ids, label_values
from lpaf_jax.data.published import from_folder, from_hub, read_columns
from lpaf_jax.data.tables import read_table
from lpaf_jax.data.values import Columns, refuse_nested

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


# What files of a split are called: as on the hub, or as in GLUE's own archives.
_STEMS = {
    "train": ("train",),
    "validation": ("validation", "dev"),
    "validation_matched": ("validation_matched", "dev_matched"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
}


# What stands for the label where annotators did not agree on one.
_NO_GOLD = ("", "-")


def glue(name: str, data: str | Path | None = None) -> tuple[Examples, Examples, int]:
    """The official training and validation examples of a GLUE task; how many lines are in neither.

    They are as published, but for spaces around a text, which are left out as in any other file.

    Some lines of QQP's archive are broken: they have fewer fields than its header, or no label. The
    hub leaves these out, and so does this, in tsv files of any task.

    Args:
        name: a key of `GLUE`.
        data: a local copy instead of the hub: a folder that `datasets` saved, or one that holds
            the two splits as parquet, csv or tsv files named after them, also as GLUE's own
            archives have them (dev.tsv for validation.tsv).

    Raises:
        LpafError: the hub cannot be reached, or the copy is missing, incomplete or unreadable.
    """
    task = GLUE[name]
    if data is None:
        splits = from_hub(name, HUB_ID, task.config or name)
    else:
        splits = from_folder(Path(data), _STEMS, lambda path: _read_file(path, task))
    where = HUB_ID if data is None else str(data)
    train, held = (splits(split) for split in ("train", task.held_out))
    return (
        _examples(train, task, f"{where}, split train"),
        _examples(held, task, f"{where}, split {task.held_out}"),
        train.left_out + held.left_out,
    )


def _examples(columns: Columns, task: GlueTask, where: str) -> Examples:
    wanted = [task.text, "label", *([task.pair] if task.pair else [])]
    values: dict[str, list[str]] = {}
    for column in wanted:
        there = _there(column, columns, task)
        if there not in columns:
            raise LpafError(f"{where}: no column {column!r}; the columns are {', '.join(columns)}")
        found = columns[there]
        if any(value is None for value in found):
            raise LpafError(f"{where}: a value is missing in column {there!r}")
        refuse_nested(found, there, lambda rows: f"{where}, row {rows[0] + 1}", "is it this task?")
        # SST-2's sentences end in a space; as one's own file they would be read without it.
        values[column] = [str(value).strip() for value in found]
    return Examples(
        texts=values[task.text],
        pairs=values[task.pair] if task.pair else None,
        labels=label_ids(values["label"], task.label_names, lambda rows: where)
        if task.label_names
        else label_values(values["label"], lambda rows: where),
    )


def _there(column: str, columns: Columns, task: GlueTask) -> str:
    """What `column` is called in these."""
    return column if column in columns else task.archive.get(column, column)


def _read_file(path: Path, task: GlueTask) -> Columns:
    is_archive = path.suffix == ".tsv"
    if path.suffix != ".parquet" and task.headless:
        table = read_table(path, skip_broken=is_archive)
        if len(table.columns) == len(task.headless) and task.text not in table.columns:
            whole = [[name, *table.read(i)] for i, name in enumerate(table.columns)]
            named = dict(zip(task.headless, whole, strict=True))
            return Columns(task.headless, named.__getitem__, table.broken)
    columns = read_columns(path, skip_broken=is_archive)
    return _labelled(columns, task) if is_archive else columns


def _labelled(columns: Columns, task: GlueTask) -> Columns:
    """The rows that have a label."""
    label = _there("label", columns, task)
    labels = columns.get(label, [])
    kept = [i for i, value in enumerate(labels) if value.strip() not in _NO_GOLD]
    if len(kept) == len(labels):
        return columns

    def read(name: str) -> list[str]:
        values = columns[name]
        return [values[i] for i in kept]

    return Columns(list(columns), read, columns.left_out + len(labels) - len(kept))
