"""Tasks by name: what a user may write after `--task`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.data.contents import refuse_packed
from lpaf_jax.data.examples import METRICS, Examples, Task
from lpaf_jax.data.glue import GLUE, glue
from lpaf_jax.data.labels import check_names
from lpaf_jax.data.language import TEXT_SUFFIX, is_text, split_text
from lpaf_jax.data.movie_reviews import LABEL_NAMES, SOURCES, movie_reviews
from lpaf_jax.data.split import drop_repeats, hash_sample, hash_split, position
from lpaf_jax.data.squad import SQUAD, Questions, check_answered, read_squad, squad
from lpaf_jax.data.tables import FILES, LABEL_COLUMN, SUFFIXES, TEXT_COLUMN, examples_of, read_table

# Shares of train, validation and test where a data set has no split of its own.
SHARES = (0.7, 0.1, 0.2)


def load_task(
    name: str,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    pair_column: str | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    regression: bool = False,
    language_model: bool = False,
) -> Task:
    """Load a task and split it; the same call gives the same splits everywhere.

    Args:
        name: `rotten_tomatoes` or `imdb`; a GLUE task such as `sst2`; `squad` or `squad_v2`,
            whose splits are `Questions`; or the path of a .json, .csv, .tsv, .jsonl or .parquet
            file. A single file is split 70 / 10 / 20 % by a hash of the text, of classes without
            repeats. A task of GLUE or SQuAD keeps its validation split as the test, and a tenth of
            its training split, drawn by hash, is the validation. In SQuAD it is the contexts that
            are drawn. A .txt file is split in the same shares, by its paragraphs: see
            `split_text`.
        text_column: the text's column in a file, `sentence` unless given, `text` for a language
            model.
        label_column: the label's column in a file, `label` unless given.
        pair_column: the second text's column in a file, for tasks about two texts.
        data: a local copy of a task of GLUE or SQuAD, instead of the hub; for SQuAD also a single
            .json file in its format.
        limit: keep at most this many training examples, drawn by hash.
        regression: the labels of a file are numbers to be predicted, not classes.
        language_model: the rows of a file are texts without labels, as a .txt file always is.

    Raises:
        LpafError: an unknown task, file or column, an option the task has no use for, missing
            values, labels that are no numbers, labels of one value, or an empty split.
    """
    if limit is not None and limit < 1:
        raise LpafError(f"a limit of {limit} leaves no training example; give at least 1")
    check_task_name(name)
    if language_model or is_text(name):
        task = _of_language(name, text_column, label_column, pair_column, data, regression)
    elif Path(name).suffix.lower() in SUFFIXES:
        _refuse(name, "a file has no other copy", data=data)
        task = _from_file(name, text_column, label_column, pair_column, regression)
    else:
        _refuse(
            name,
            "its columns are known",
            text_column=text_column,
            label_column=label_column,
            pair_column=pair_column,
            regression=regression or None,
        )
        task = _NAMED[name](name, data)
    if limit is not None:
        task = replace(task, train=hash_sample(task.train, limit))
    _check(task)
    return task


def check_task_name(name: str) -> None:
    """Raise LpafError unless `name` is a task or ends as a file that is read here."""
    if name not in TASK_NAMES and Path(name).suffix.lower() not in (TEXT_SUFFIX, *SUFFIXES):
        refuse_packed(Path(name))
        raise LpafError(
            f"unknown task {name!r}; choose one of {', '.join(TASK_NAMES)}, or give a {FILES}, or "
            f"a {TEXT_SUFFIX} file for a language model"
        )


def _of_reviews(name: str, data: str | Path | None) -> Task:
    _refuse(name, "it comes from the movie-reviews package", data=data)
    return Task(name, LABEL_NAMES, *hash_split(movie_reviews(name), SHARES))


def _of_glue(name: str, data: str | Path | None) -> Task:
    rest, test, broken = glue(name, data)
    splits = (*hash_split(rest, (0.9, 0.1)), test)
    about = GLUE[name]
    names = list(about.label_names)
    return Task(name, names, *splits, kind=about.kind, metrics=about.metrics, broken=broken)


def _of_spans(name: str, data: str | Path | None) -> Task:
    if data is not None and Path(data).suffix.lower() == ".json":
        questions = read_squad(data)
        check_answered(name, questions, str(data))
        splits = hash_split(questions, SHARES, _by_context(questions))
    else:
        rest, test = squad(name, data)
        splits = [*hash_split(rest, (0.9, 0.1), _by_context(rest)), test]
    return Task(name, [], *splits, kind="span", metrics=METRICS["span"])


# How each data set with a name is loaded, from a local copy if one is given.
_NAMED: dict[str, Callable[[str, str | Path | None], Task]] = {
    **dict.fromkeys(SOURCES, _of_reviews),
    **dict.fromkeys(GLUE, _of_glue),
    **dict.fromkeys(SQUAD, _of_spans),
}
TASK_NAMES = tuple(_NAMED)


def _by_context(questions: Questions) -> np.ndarray:
    """Questions about one context share a split: a context that was trained on is no test."""
    places = {context: position(context) for context in set(questions.pairs)}
    return np.array([places[context] for context in questions.pairs], dtype=np.float64)


def _of_language(
    name: str,
    text_column: str | None,
    label_column: str | None,
    pair_column: str | None,
    data: str | Path | None,
    regression: bool,
) -> Task:
    if name in TASK_NAMES:
        raise SettingError(
            ("language_model",), f"works only for files; {name} is a task with labels"
        )
    _refuse(
        name,
        "a language model reads text without labels",
        label_column=label_column,
        pair_column=pair_column,
        regression=regression or None,
    )
    _refuse(name, "a file has no other copy", data=data)
    if is_text(name):
        _refuse(name, "a plain text has no columns", text_column=text_column)
    splits = split_text(name, SHARES, text_column)
    return Task(Path(name).stem, [], *splits, kind="language", metrics=METRICS["language"])


def _from_file(
    path: str,
    text_column: str | None,
    label_column: str | None,
    pair_column: str | None,
    regression: bool,
) -> Task:
    label_column = label_column or LABEL_COLUMN
    table = read_table(path)
    examples, names = examples_of(
        table, text_column or TEXT_COLUMN, label_column, pair_column, None, regression
    )
    if regression:
        splits = hash_split(examples, SHARES)
        return Task(Path(path).stem, [], *splits, kind="regression", metrics=METRICS["regression"])
    if len(names) > max(2, len(examples) // 2):
        raise LpafError(
            f"{path}: column {label_column!r} has {len(names)} different values in "
            f"{len(examples)} rows, which are not classes; name another label column"
        )
    check_names(names, examples.labels, partial(table.where, column=label_column))
    kept = drop_repeats(examples)
    splits = hash_split(kept, SHARES)
    return Task(Path(path).stem, names, *splits, repeats=len(examples) - len(kept))


def _refuse(name: str, why: str, **options: object) -> None:
    for option, value in options.items():
        if value is not None:
            raise SettingError((option,), f"has no effect for task {name}, as {why}: leave it out")


def _check(task: Task) -> None:
    splits: dict[str, Examples] = {
        "training": task.train,
        "validation": task.validation,
        "test": task.test,
    }
    if task.kind == "classification" and len(task.label_names) < 2:
        raise LpafError(
            f"task {task.name} has only one class ({task.label_names[0]!r}); a classifier needs "
            "at least two"
        )
    sizes = ", ".join(f"{split} {len(part)}" for split, part in splits.items())
    for split, part in splits.items():
        if not len(part):
            raise LpafError(
                f"task {task.name} has an empty {split} split ({sizes}); it needs more "
                f"{'paragraphs or rows' if task.kind == 'language' else 'rows'}"
            )
    if task.kind not in ("span", "language") and np.unique(task.train.labels).size < 2:
        what = "class" if task.kind == "classification" else "value"
        raise LpafError(
            f"all training examples of task {task.name} have the same {what} ({sizes}); add rows "
            "with others"
        )
