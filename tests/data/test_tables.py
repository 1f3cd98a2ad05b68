import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import read_examples
from lpaf_jax.data.tables import read_table

AWKWARD = [
    'the new " conan " movie',
    '"so" they say',
    '"a film in quotes"',
    "commas, and 'apostrophes'",
    'one open " quote',
    "C1 \x85 \x96 and \u2028 are no line ends",
    "ünïcode ☃ \U0001f3ac",
]


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


def written_by_csv(path, texts, delimiter):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["sentence", "label"])
        writer.writerows((text, i % 2) for i, text in enumerate(texts))
    return path


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_what_the_csv_module_writes_comes_back(tmp_path, suffix, delimiter):
    texts = [*AWKWARD, "two\nlines", "two\r\nmore", "a\ttab"]
    examples = read_examples(written_by_csv(tmp_path / f"t{suffix}", texts, delimiter))
    assert examples.texts == texts
    assert examples.labels.tolist() == [i % 2 for i in range(len(texts))]


def test_a_quoted_tsv_of_one_line_rows_loses_its_quoting(tmp_path):
    texts = ['the new " conan " movie', 'one open " quote', "plain"]
    assert read_examples(written_by_csv(tmp_path / "t.tsv", texts, "\t")).texts == texts


def test_a_raw_tsv_that_would_pass_for_a_quoted_one_keeps_its_rows(tmp_path):
    # A csv reader finds nothing wrong here: one row whose text has three lines.
    path = write(tmp_path / "t.tsv", 'sentence\tlabel\n"one\t0\ntwo\t1\nthree"\t0\n')
    assert read_examples(path).texts == ['"one', "two", 'three"']


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_raw_tsv_keeps_its_quotes_and_all_its_rows(tmp_path, newline):
    texts = [*AWKWARD, '"opens here', "between", 'closes here"']
    rows = ["sentence\tlabel", *(f"{text}\t{i % 2}" for i, text in enumerate(texts))]
    path = write(tmp_path / "t.tsv", newline.join(rows) + newline)
    assert read_examples(path).texts == texts


def test_a_byte_order_mark_blank_lines_and_spaces_around_cells_are_ignored(tmp_path):
    path = write(tmp_path / "t.csv", "\ufeff sentence , label \r\n\r\n a b , 1\r\n\r\nc,0\r\n")
    examples = read_examples(path)
    assert (examples.texts, examples.labels.tolist()) == (["a b", "c"], [1, 0])


def test_texts_longer_than_the_csv_modules_limit_are_read_and_the_limit_is_put_back(tmp_path):
    limit = csv.field_size_limit()
    path = write(tmp_path / "t.csv", f"sentence,label\n{'word ' * limit},1\nb,0\n")
    assert len(read_examples(path).texts[0]) == 5 * limit - 1
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("word", ["null", "NaN", "<NA>"])
def test_a_text_may_read_like_a_missing_value(tmp_path, word):
    path = write(tmp_path / "t.csv", f"sentence,other,label\n{word},a,1\nb,{word},0\n")
    examples = read_examples(path, pair_column="other")
    assert (examples.texts, examples.pairs) == ([word, "b"], ["a", word])


def test_columns_are_chosen_by_name(tmp_path):
    path = write(tmp_path / "t.csv", "id,gold,q1,q2\n7,yes,a,b\n8,no,c,d\n")
    examples = read_examples(path, "q1", "gold", "q2")
    assert (examples.texts, examples.pairs) == (["a", "c"], ["b", "d"])
    assert examples.labels.tolist() == [1, 0]  # no < yes


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (["10", "9", "2"], [2, 1, 0]),  # by value, not by spelling
        (["1.0", "0", "1"], [1, 0, 1]),  # an integer column that had gaps
        (["0.5", "-1", "3"], [1, 0, 2]),
        (["b", "10", "9"], [2, 0, 1]),  # not all numbers: by name
        (["True", "False", "True"], [1, 0, 1]),
    ],
)
def test_labels_become_positions_among_the_sorted_names(tmp_path, labels, ids):
    rows = "".join(f"text,{label}\n" for label in labels)
    assert (
        read_examples(write(tmp_path / "t.csv", f"sentence,label\n{rows}")).labels.tolist() == ids
    )


@pytest.mark.parametrize(
    "labels", ["positive negative negative", "1 0 0", "1.0 0.0 0", "1 negative 0"]
)
def test_a_models_label_names_may_be_given_as_names_or_positions(tmp_path, labels):
    rows = "".join(f"text,{label}\n" for label in labels.split())
    path = write(tmp_path / "t.csv", f"sentence,label\n{rows}")
    assert read_examples(path, label_names=["negative", "positive"]).labels.tolist() == [1, 0, 0]


def test_names_that_are_numbers_are_never_taken_for_positions(tmp_path):
    path = write(tmp_path / "t.csv", "sentence,label\na,2\nb,1\n")
    assert read_examples(path, label_names=["1", "2"]).labels.tolist() == [1, 0]
    with pytest.raises(LpafError, match=r"unknown label '2'; expected one of '0', '1'$"):
        read_examples(path, label_names=["0", "1"])


RECORDS = [
    {"id": 7, "sentence": " one\nline ", "label": 1.0, "spans": [1, 2]},
    {"id": 8, "sentence": "null", "label": 0.0, "spans": []},
    {"id": 9, "sentence": "ünïcode \u2028 ☃", "label": 1.0, "spans": None},
]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet", "T.PARQUET"])
def test_records_are_read_as_the_rows_of_a_table(tmp_path, name):
    path = tmp_path / name
    if name == "t.jsonl":
        lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
        write(path, "\ufeff" + "\r\n\r\n".join(lines) + "\r\n")
        places = [1, 3, 5]
    else:
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
        places = [1, 2, 3]
    table = read_table(path)
    assert (table.columns, table.lines) == (["id", "sentence", "label", "spans"], places)
    assert table.column("id") == ["7", "8", "9"]
    examples = read_examples(path)
    assert examples.texts == ["one\nline", "null", "ünïcode \u2028 ☃"]
    assert examples.labels.tolist() == [1, 0, 1]
    with pytest.raises(LpafError, match=r" 1: column 'spans' holds a list, \[1, 2\], where one"):
        read_examples(path, "spans")


def test_what_a_record_does_not_say_is_missing(tmp_path):
    records = [{"sentence": "a", "label": "x"}, {"sentence": None, "label": "y"}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "t.parquet")
    with pytest.raises(LpafError, match=r"t\.parquet, row 2: no value in column 'sentence'"):
        read_examples(tmp_path / "t.parquet")
    path = write(tmp_path / "t.jsonl", '{"sentence": "a"}\n{"label": "y", "sentence": "b"}\n')
    with pytest.raises(LpafError, match=r"t\.jsonl, line 1: no value in column 'label'"):
        read_examples(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", "\n", "is empty"),
        ("t.jsonl", '{"sentence": "a"}\n\n{"sentence"\n', "line 3: not JSON: "),
        ("t.jsonl", "[1, 2]\n", "line 1: not a JSON object"),
        ("t.parquet", "sentence,label\n", "cannot be read as parquet"),
    ],
)
def test_damaged_records_are_refused(tmp_path, name, content, message):
    with pytest.raises(LpafError, match=message) as caught:
        read_examples(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("sentence,label\n", "header but no rows"),
        ("text,label\na,1\n", "no column 'sentence'; its columns are 'text', 'label'"),
        ("sentence;label\na;1\n", "no column 'sentence'; its columns are 'sentence;label'"),
        ("sentence,sentence,label\na,b,1\n", "2 columns named 'sentence'"),
        ("sentence,label\na,1\n\nb\n", "line 4: 1 fields where the header names 2"),
        ("sentence,label\na,b,1\n", "line 2: 3 fields where the header names 2"),
        ('sentence,label\na,1\n"b,0\nc,1\n', "malformed: .*starts at line 3"),
        ('sentence,label\n"a" b,1\n', "malformed: .*starts at line 2"),
        ("sentence,label\na,1\n,0\n", "line 3: no value in column 'sentence'"),
        ("sentence,label\na,1\nb,\n", "line 3: no value in column 'label'"),
        ("sentence,label\na,1\nb,NaN\n", "line 3: no value in column 'label' \\('NaN'\\)"),
        ("sentence,label\na,null\n", "line 2: no value in column 'label' \\('null'\\)"),
        ("sentence,label\na,maybe\n", "unknown label 'maybe'; expected one of 'no', 'yes', '0'"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_of_the_mistake(tmp_path, content, message):
    with pytest.raises(LpafError, match=message) as caught:
        read_examples(write(tmp_path / "bad.csv", content), label_names=["no", "yes"])
    assert "bad.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["one field", '"open\t1\textra', "a\tb\t1"])
def test_a_tsv_row_of_the_wrong_width_is_refused(tmp_path, line):
    path = write(tmp_path / "t.tsv", f'sentence\tlabel\na\t1\n{line}\n"b" c\t0\n')
    with pytest.raises(LpafError, match="line 3: . fields where the header names 2"):
        read_examples(path)


def test_rows_are_numbered_by_line_even_after_a_row_of_several_lines(tmp_path):
    path = write(tmp_path / "t.csv", 'sentence,label\n"two\nlines",1\nb,\n')
    assert read_table(path).lines == [2, 4]
    with pytest.raises(LpafError, match="line 4: no value"):
        read_examples(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.csv", "does not exist"),
        ("data.xml", r"not a .*\.csv, \.tsv, \.jsonl or \.parquet file"),
        ("none.json", "does not exist"),
        ("none.jsonl", "does not exist"),
        ("none.parquet", "does not exist"),
        ("d.csv", "cannot be read"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, message):
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(LpafError, match=message):
        read_examples(tmp_path / name)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("sentence,label\ntouché,1\n".encode("latin-1"))
    with pytest.raises(LpafError, match=r"not UTF-8 \(byte 20 is 0xe9\) in line 2;"):
        read_examples(path)
