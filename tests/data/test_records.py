"""Rows of JSON and parquet files, as their writers leave them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import load_task, load_tokenizer, read_examples, read_squad, text_tokens
from lpaf_jax.data.tables import read_table
from tests.data.tokenizers_of_decoders import gpt2

ROWS: list[dict[str, Any]] = [
    {"sentence": f"über {i} \U0001f600", "label": "good" if i % 2 else "bad"} for i in range(60)
]
TEXTS = [row["sentence"] for row in ROWS]

JSON_FORMS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
    "lines and a mark": lambda rows: "\ufeff" + "\r\n\r\n".join(map(json.dumps, rows)) + "\r\n",
    "array": json.dumps,
    "array, indented": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False),
    "objects, indented": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
}


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def arrow(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.ndjson", "T.JSON"])
@pytest.mark.parametrize("form", JSON_FORMS)
def test_the_content_of_a_json_file_decides_how_it_is_read(
    tmp_path: Path, name: str, form: str
) -> None:
    path = write(tmp_path / name, JSON_FORMS[form](ROWS))
    task = load_task(str(path))
    assert task.label_names == ["bad", "good"]
    assert sum(map(len, (task.train, task.validation, task.test))) == len(ROWS)
    assert read_examples(path).texts == TEXTS


@pytest.mark.parametrize("form", JSON_FORMS)
def test_a_json_file_is_no_text_of_braces_to_a_language_model(tmp_path: Path, form: str) -> None:
    tokenizer = load_tokenizer(gpt2(tmp_path / "m"))
    path = write(tmp_path / "t.json", JSON_FORMS[form](ROWS))
    found = [piece.tolist() for piece in text_tokens(tokenizer, path)]
    assert found == [piece.tolist() for piece in text_tokens(tokenizer, TEXTS)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [{"sentence": "a"}]}', r"is one JSON object \('data'\), not rows"),
        (
            '{"sentence": {"0": "a"}, "label": {"0": 1}}',
            r"object \('sentence', 'label'\), not rows",
        ),
        ('["a", "b"]', "line 1: not a JSON object"),
        ("3", "line 1: not a JSON object"),
        ("[]", "is empty"),
        ("", "is empty"),
        ('[{"sentence": "a"},\n {"sentence"', "line 2: not JSON: "),
        ('[{"sentence": "a"}\n {"sentence": "b"}]', "line 2: not JSON: Expecting ','"),
        ('[{"sentence": "a"}', "line 1: not JSON: "),
        ('[{"sentence": "a"}]\n]', "line 2: not JSON: Extra data"),
        ("[" * 100_000, "line 1: not JSON: "),
        ('[{"sentence": "a", "label": 1}, {"sentence": "b"}]', "record 2: no value in column 'la"),
    ],
)
def test_json_that_holds_no_rows_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LpafError, match=message) as caught:
        read_examples(write(tmp_path / "t.json", text))
    assert "\n" not in str(caught.value)


def test_one_object_is_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", json.dumps({"sentence": "a", "label": 1}, indent=2))
    assert read_examples(path, label_names=["0", "1"]).texts == ["a"]


@pytest.mark.parametrize("half", [0xD83D, 0xDE00])
@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_half_a_character_is_replaced_as_in_any_broken_text(
    tmp_path: Path, name: str, half: int
) -> None:
    end = chr(half)
    rows = [
        {"sentence": f"{i} film {end}", "other": end, "label": f"{'ab'[i % 2]}{end}", end: i}
        for i in range(60)
    ]
    form = "array" if name == "t.json" else "lines"
    path = write(tmp_path / name, JSON_FORMS[form](rows))
    task = load_task(str(path), pair_column="other")
    assert task.label_names == ["a\ufffd", "b\ufffd"]
    assert all(text.endswith(" film \ufffd") for text in task.test.texts)
    assert read_table(path).columns[-1] == "\ufffd"
    # The library takes no half of a character: it would raise here.
    assert list(text_tokens(load_tokenizer(gpt2(tmp_path / "m")), path))


def test_half_a_character_in_squad_leaves_answers_where_they_are(tmp_path: Path) -> None:
    answers = [{"text": "film \ud83d", "answer_start": 4}]
    qas = [{"id": "1", "question": "what \ud83d?", "answers": answers}]
    held = {"data": [{"paragraphs": [{"context": "\ud83d a film \ud83d.", "qas": qas}]}]}
    questions = read_squad(write(tmp_path / "x.json", json.dumps(held)))
    assert (questions.texts, questions.answers) == (["what \ufffd?"], [["film \ufffd"]])
    [(start, end)] = questions.labels
    assert questions.pairs[0][start:end] == "film \ufffd"


BYTES = {
    "binary": pa.binary(),
    "large": pa.large_binary(),
    "view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
}


@pytest.mark.parametrize("kind", BYTES)
def test_strings_that_parquet_stores_as_bytes(tmp_path: Path, kind: str) -> None:
    def stored(values: list[str]) -> Any:
        held = pa.array([value.encode() for value in values], pa.binary())
        return held.dictionary_encode() if kind == "dictionary" else held.cast(BYTES[kind])

    path = arrow(
        tmp_path / "t.parquet",
        sentence=stored(TEXTS),
        other=stored([f"{text}?" for text in TEXTS]),
        label=stored([row["label"] for row in ROWS]),
    )
    task = load_task(str(path), pair_column="other")
    assert task.label_names == ["bad", "good"]
    for part in (task.train, task.validation, task.test):
        assert part.pairs == [f"{text}?" for text in part.texts]
        assert set(part.texts) <= set(TEXTS)
    tokenizer = load_tokenizer(gpt2(tmp_path / "m"))
    found = [piece.tolist() for piece in text_tokens(tokenizer, path)]
    assert found == [piece.tolist() for piece in text_tokens(tokenizer, TEXTS)]


def test_zeros_that_fill_bytes_of_one_width_are_no_part_of_a_name(tmp_path: Path) -> None:
    labels = pa.array([row["label"].encode().ljust(4, b"\0") for row in ROWS], pa.binary(4))
    path = arrow(tmp_path / "t.parquet", sentence=TEXTS, label=labels)
    assert load_task(str(path)).label_names == ["bad", "good"]


def test_bytes_that_are_not_utf8_are_named_by_row_and_column(tmp_path: Path) -> None:
    raw = [b"fine", b"caf\xe9", b"good"]
    held = pa.array(raw, pa.binary())
    strings = pa.StringArray.from_buffers(3, held.buffers()[1], held.buffers()[2])
    for column in (held, strings):
        path = arrow(tmp_path / "t.parquet", sentence=column, text=["a", "b", "c"], label=[0, 1, 0])
        message = r"t\.parquet, row 2: bytes in column 'sentence' are not UTF-8 \(byte 3 is 0xe9\)"
        with pytest.raises(LpafError, match=message):
            read_examples(path)
        assert read_examples(path, "text").texts == ["a", "b", "c"]  # no other column minds


def test_answers_that_parquet_stores_as_bytes(tmp_path: Path) -> None:
    answers = pa.array(
        [{"text": [b"the end"], "answer_start": [3]}] * 60,
        pa.struct({"text": pa.list_(pa.binary()), "answer_start": pa.list_(pa.int32())}),
    )
    for split in ("train", "validation"):
        arrow(
            tmp_path / f"{split}.parquet",
            id=[f"{split} {i}" for i in range(60)],
            question=pa.array([b"what?"] * 60),
            context=pa.array([f"{i:02d} the end.".encode() for i in range(60)]),
            answers=answers,
        )
    task = load_task("squad", data=tmp_path)
    assert set(task.test.texts) == {"what?"}
    for context, (start, end) in zip(task.test.pairs or [], task.test.labels, strict=True):
        assert context[start:end] == "the end"


def test_a_copy_that_datasets_saved_with_bytes(tmp_path: Path) -> None:
    import datasets

    columns = {"sentence": [text.encode() for text in TEXTS], "label": [i % 2 for i in range(60)]}
    split = datasets.Dataset.from_dict(columns)
    datasets.disable_progress_bars()
    saved = datasets.DatasetDict({"train": split, "validation": split})
    saved.save_to_disk(str(tmp_path / "saved"))
    assert load_task("sst2", data=tmp_path / "saved").test.texts == TEXTS


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.parquet"])
@pytest.mark.parametrize(
    ("value", "shown"), [([1, 0], r"a list, \[1, 0\]"), ({"id": 1}, "an object, {'id': 1}")]
)
def test_a_column_of_lists_is_called_that(
    tmp_path: Path, name: str, value: Any, shown: str
) -> None:
    rows = [{"sentence": text, "label": value} for text in TEXTS]
    path = tmp_path / name
    if name == "t.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write(path, JSON_FORMS["array" if name == "t.json" else "lines"](rows))
    with pytest.raises(LpafError, match=rf" 1: column 'label' holds {shown}, .*multi-label"):
        load_task(str(path))
    with pytest.raises(LpafError, match=rf" 1: column 'label' holds {shown}, .*join its parts"):
        read_examples(path, "label", "sentence")


def test_columns_and_keys_named_twice_are_refused_where_they_are_needed(tmp_path: Path) -> None:
    texts = pa.array(TEXTS)
    labels = pa.array([i % 2 for i in range(60)])
    for named, other in (("label", "x"), ("x", "label")):
        table = pa.table([texts, labels, labels, labels], names=["sentence", named, named, other])
        pq.write_table(table, tmp_path / "t.parquet")
        lines = (
            f'{{"sentence": "{text}", "{named}": 1, "{named}": 0, "{other}": {i % 2}}}'
            for i, text in enumerate(TEXTS)
        )
        write(tmp_path / "t.jsonl", "\n".join(lines))
        for name, message in (
            ("t.parquet", r"t\.parquet has 2 columns named 'label'"),
            ("t.jsonl", r"t\.jsonl, line 1: two values named 'label'"),
        ):
            if named == "label":
                with pytest.raises(LpafError, match=message):
                    load_task(str(tmp_path / name))
            else:
                assert load_task(str(tmp_path / name)).label_names == ["0", "1"]


def test_a_key_named_twice_in_squad_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", '{"data": [], "data": []}')
    with pytest.raises(LpafError, match="an object has two values named 'data'"):
        read_squad(path)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(LpafError, match=r"t\.parquet cannot be read as parquet"):
        read_examples(tmp_path / "t.parquet")
    arrow(tmp_path / "none.parquet", sentence=pa.array([], pa.string()))
    with pytest.raises(LpafError, match=r"none\.parquet is empty"):
        read_examples(tmp_path / "none.parquet")
