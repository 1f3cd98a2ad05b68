"""Which words of a label column are classes, and which numbers can be learnt."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import load_task, read_examples
from lpaf_jax.data.labels import label_ids


def write(path: Path, labels: Sequence[object], rows: int = 90) -> str:
    """A csv file whose labels go through `labels` again and again."""
    lines = [f"sentence number {i},{labels[i % len(labels)]}" for i in range(rows)]
    path.write_text("\n".join(["sentence,label", *lines]), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([-1, 1], ["-1", "1"]),
        (["-1.0", "1.0"], ["-1", "1"]),
        (["-1", "+1"], ["-1", "+1"]),
        ([-2, -1, 0, 1, 2], ["-2", "-1", "0", "1", "2"]),
        ([-1, 0.5, 3], ["-1", "0.5", "3"]),
        (["+", "-"], ["+", "-"]),
        (["+", "-", 0], ["+", "-", "0"]),
        (["AGAINST", "NONE", "FAVOR"], ["AGAINST", "FAVOR", "NONE"]),
        (["NA", "born in"], ["NA", "born in"]),
        (["[INST]", "[OTHER]"], ["[INST]", "[OTHER]"]),
        (["0.0", "1.0"], ["0", "1"]),
        (["True", "False"], ["False", "True"]),
    ],
)
def test_labels_that_are_classes(tmp_path: Path, labels: list[object], names: list[str]) -> None:
    assert load_task(write(tmp_path / "t.csv", labels)).label_names == names


LINES = "lines 4, 7, 10, 13, 16 and 25 more"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1], f"{LINES}, column 'label': label '-1' marks a missing label"),
        ([1, 2, "-1.0"], "label '-1' marks a missing label"),
        (["ham", "spam", -1], f"{LINES}, column 'label': label '-1' marks a missing label"),
        ([-1], "label '-1' marks a missing label"),
        (["a", "b", "-"], f"{LINES}, column 'label': label '-' marks a missing label"),
        ([0, 1, "-"], "label '-' marks a missing label"),
        ([*["Good", "bad", "good"] * 2, "good"], "column 'label': label 'Good' beside 'good'"),
        (["not spam", "spam", "not spam", "not  spam"], "label 'not  spam' beside 'not spam'"),
        (["cafe\u0301", "bar", "cafe\u0301", "caf\u00e9"], "label 'caf\u00e9' beside 'cafe\u0301'"),
        (["0.5", 1, "0.5", "0.50"], "label '0.50' beside '0.5'"),
        (["True", "False", "True", "true"], "label 'true' beside 'True'"),
        (['"[1, 0]"', '"[0, 1]"'], r"label '\[0, 1\]' is a list; .*multi-label"),
        (["[1 0]", "[0 1]"], r"label '\[0 1\]' is a list"),
        (["['a']", "\"['a', 'b']\""], r"label .*'a'.* is a list"),
    ],
)
def test_labels_that_are_no_classes_are_named_by_their_rows(
    tmp_path: Path, labels: list[object], message: str
) -> None:
    path = write(tmp_path / "t.csv", labels)
    with pytest.raises(LpafError, match=message) as caught:
        load_task(path)
    assert str(caught.value).startswith(f"{path}, line")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (["a", "b", "null"], "null"),
        (["a", "b", "NULL"], "NULL"),
        (["a", "b", "nan"], "nan"),
        (["a", "b", "#N/A"], "#N/A"),
        (["a", "b", r"\N"], r"\\\\N"),
        ([0, 1, "None"], "None"),
        ([0, 1, "NA"], "NA"),
        ([0, 1, "N/A"], "N/A"),
        ([0, 1, "?"], r"\?"),
    ],
)
def test_a_word_for_no_value_is_said_to_be_one(
    tmp_path: Path, labels: list[object], word: str
) -> None:
    message = (
        rf"t\.csv, {LINES}: no value in column 'label' \('{word}'\); fill it in or remove the "
        rf"row; if '{word}' is a class, rename it"
    )
    with pytest.raises(LpafError, match=message):
        load_task(write(tmp_path / "t.csv", labels))


def test_a_name_that_the_model_knows_is_a_class_whatever_it_is(tmp_path: Path) -> None:
    names = ["null", "None", "-", "-1", "Null"]
    path = write(tmp_path / "t.csv", names, rows=5)
    assert read_examples(path, label_names=names).labels.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(LpafError, match="line 2: no value in column 'label' \\('null'\\)"):
        read_examples(path, label_names=names[1:])


def test_an_unknown_label_is_named_by_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [0, 1, -1])
    with pytest.raises(LpafError, match=f"{LINES}, column 'label': unknown label '-1'; expected"):
        read_examples(path, label_names=["bad", "good"])


@pytest.mark.parametrize("label", ["1e39", "-1e39", "3.5e38", "1e300", "1e400", "-1e30"])
def test_values_beyond_float32_are_named(tmp_path: Path, label: str) -> None:
    path = write(tmp_path / "t.csv", [0.5, 1.5, label], rows=3)
    message = rf"t\.csv, line 4, column 'label': {label} is too large for squared errors"
    with pytest.raises(LpafError, match=message):
        read_examples(path, regression=True)


@pytest.mark.parametrize("label", ["inf", "-Infinity", "high", "1,5", "-"])
def test_what_is_no_number_is_named(tmp_path: Path, label: str) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(f"sentence\tlabel\na\t1\nb\t{label}\n")
    with pytest.raises(LpafError, match=f"line 3, .*'{label}' where a regression needs a number"):
        read_examples(path, regression=True)


@pytest.mark.parametrize("label", ["NaN", "NA", "null", "None"])
def test_a_missing_value_of_a_regression_is_no_class(tmp_path: Path, label: str) -> None:
    path = write(tmp_path / "t.csv", [1.5, label], rows=2)
    with pytest.raises(LpafError, match=rf"line 3: no value .*\('{label}'\); .* the row$"):
        read_examples(path, regression=True)


def test_large_and_tiny_values_are_learnt_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["1e18", "-1e18", "1e-300", "-0.0", "16777216"], rows=5)
    found = read_examples(path, regression=True).labels
    np.testing.assert_array_equal(found, np.float32([1e18, -1e18, 0, 0, 16777216]))


def test_names_that_a_model_writes_as_floats_are_known():
    found = label_ids(["1.0", "2", "2.0"], ["1.0", "2.0"], lambda rows: "a file")
    np.testing.assert_array_equal(found, [0, 1, 1])
