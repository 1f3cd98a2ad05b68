import json

import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import Questions, load_task, read_squad
from lpaf_jax.data.squad import misplaced


def article(tag, n, *, version_2=False):
    """An article in the official nesting: context i ends in its number, asked about twice."""
    paragraphs = []
    for i in range(n):
        context = f"{tag} — “Ünïcode” of number{i}. The end."
        start = context.index("number")
        asked = [
            {
                "id": f"{tag}-{i}-a",
                "question": f"Which number is in {tag} {i}?",
                "answers": [
                    {"text": f"number{i}", "answer_start": start},
                    {"text": f"of number{i}", "answer_start": start - 3},
                ],
            },
            {
                "id": f"{tag}-{i}-b",
                "question": f"What ends {tag} {i}?",
                "answers": [{"text": "The end", "answer_start": context.index("The end")}],
            },
        ]
        if version_2:
            asked[0]["is_impossible"] = False
            asked[1] |= {"is_impossible": True, "plausible_answers": asked[1]["answers"]}
            asked[1]["answers"] = []
        paragraphs.append({"context": context, "qas": asked})
    return {"title": tag, "paragraphs": paragraphs}


def write(path, tag, n, *, version_2=False):
    value = {
        "version": "v2.0" if version_2 else "1.1",
        "data": [article(tag, n, version_2=version_2)],
    }
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def columns(questions):
    """As the hub has them."""
    starts = [
        [context.index(text) for text in texts]
        for context, texts in zip(questions.pairs, questions.answers, strict=True)
    ]
    return {
        "id": questions.ids,
        "title": ["t"] * len(questions),
        "context": questions.pairs,
        "question": questions.texts,
        "answers": [
            {"text": texts, "answer_start": begin}
            for texts, begin in zip(questions.answers, starts, strict=True)
        ],
    }


def check(task, n_train, n_held, *, version_2=False):
    assert (task.kind, task.label_names, task.metrics) == ("span", [], ("f1", "exact"))
    assert len(task.test) == 2 * n_held
    assert {name.split("-")[0] for name in task.test.ids} == {"dev"}
    assert len(task.train) + len(task.validation) == 2 * n_train
    assert not set(task.train.pairs) & set(task.validation.pairs)
    for part in (task.train, task.validation, task.test):
        assert isinstance(part, Questions)
        assert len(part) > 0
        rows = zip(part.ids, part.texts, part.pairs, part.labels, part.answers, strict=True)
        for name, question, context, (start, end), answers in rows:
            tag, number, which = name.split("-")
            assert question.endswith(f"{tag} {number}?")
            if which == "b" and version_2:
                assert (start, end, answers) == (-1, -1, [])
                continue
            assert context[start:end] == answers[0]
            assert len(answers) == (2 if which == "a" else 1)


@pytest.mark.parametrize(("name", "version"), [("squad", "v1.1"), ("squad_v2", "v2.0")])
def test_the_official_files(tmp_path, name, version):
    version_2 = name == "squad_v2"
    write(tmp_path / f"train-{version}.json", "train", 60, version_2=version_2)
    write(tmp_path / f"dev-{version}.json", "dev", 5, version_2=version_2)
    check(load_task(name, data=tmp_path), 60, 5, version_2=version_2)


def test_a_single_file_is_split_by_context(tmp_path):
    task = load_task("squad_v2", data=write(tmp_path / "own.json", "own", 60, version_2=True))
    parts = [set(part.pairs) for part in (task.train, task.validation, task.test)]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 60
    assert len(parts[0]) > len(parts[2]) > len(parts[1]) > 0


def made(tmp_path, version_2):
    train = read_squad(write(tmp_path / "a.json", "train", 60, version_2=version_2))
    return train, read_squad(write(tmp_path / "b.json", "dev", 5, version_2=version_2))


@pytest.mark.parametrize(
    ("name", "place"), [("squad", "rajpurkar/squad"), ("squad_v2", "rajpurkar/squad_v2")]
)
def test_without_a_copy_the_hub_is_asked(tmp_path, monkeypatch, name, place):
    import datasets

    train, held = made(tmp_path, name == "squad_v2")

    def load_dataset(*arguments):
        assert arguments == (place,)
        parts = {"train": columns(train), "validation": columns(held)}
        return datasets.DatasetDict({k: datasets.Dataset.from_dict(v) for k, v in parts.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check(load_task(name), 60, 5, version_2=name == "squad_v2")


def test_parquet_files_as_the_hub_stores_them(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, questions in zip(("train", "validation"), made(tmp_path, True), strict=True):
        path = tmp_path / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.table(columns(questions)), path)
    check(load_task("squad_v2", data=tmp_path), 60, 5, version_2=True)


def test_answers_may_be_a_list_of_pairs_of_text_and_start(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, questions in zip(("train", "validation"), made(tmp_path, True), strict=True):
        found = columns(questions)
        found["answers"] = [
            [
                {"text": text, "answer_start": start}
                for text, start in zip(given["text"], given["answer_start"], strict=True)
            ]
            for given in found["answers"]
        ]
        pq.write_table(pa.table(found), tmp_path / f"{split}.parquet")
    check(load_task("squad_v2", data=tmp_path), 60, 5, version_2=True)


TEXT = {"text": "the end"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([TEXT], "needs a text and an answer_start"),
        ({"text": ["the end"]}, "needs a text and an answer_start"),
        ({"text": ["the end"], "answer_start": []}, "needs a text and an answer_start"),
        (TEXT | {"answer_start": 1}, "needs a text and an answer_start"),
        ([{"text": None, "answer_start": 1}], "needs a text and an answer_start"),
        ("the end", "needs a text and an answer_start"),
        (7, "needs a text and an answer_start"),
        ([TEXT | {"answer_start": "x"}], "answer_start is 'x', but must be a whole number"),
        ([TEXT | {"answer_start": None}], "answer_start is None, but must be"),
        ([TEXT | {"answer_start": 12}], "answer_start is 12, but the context has 12 characters"),
        ([TEXT | {"answer_start": -1}], "answer_start is -1, but the context"),
    ],
)
def test_an_answer_that_is_none_is_named_by_its_question(tmp_path, given, message):
    asked = {"id": "7a", "question": "q", "answers": given}
    paragraph = {"context": "it  the end.", "qas": [asked]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    with pytest.raises(LpafError, match=rf"x\.json, question '7a': .*{message}"):
        read_squad(path)


@pytest.mark.parametrize(
    ("text", "start", "count"),
    [
        ("the end", 4, 0),
        ("the end\n", 4, 0),  # where the context has another space
        (" the end", 3, 0),
        ("the end", 3, 1),
        ("the end", 9, 1),  # over when the context is
    ],
)
def test_answers_that_are_not_where_they_are_said_to_be_are_counted(tmp_path, text, start, count):
    answers = [{"text": text, "answer_start": start}, {"text": "it", "answer_start": 5}]
    qas = [{"id": "1", "question": "q", "answers": given} for given in (answers, [])]
    path = tmp_path / "x.json"
    paragraph = {"context": "it  the end .", "qas": qas}
    path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    assert misplaced(read_squad(path)) == count


def test_a_copy_saved_by_datasets(tmp_path):
    import datasets

    train, held = made(tmp_path, False)
    parts = {"train": columns(train), "validation": columns(held)}
    saved = datasets.DatasetDict({k: datasets.Dataset.from_dict(v) for k, v in parts.items()})
    datasets.disable_progress_bars()
    saved.save_to_disk(str(tmp_path / "saved"))
    check(load_task("squad", data=tmp_path / "saved"), 60, 5)


def test_a_limit_takes_whole_questions(tmp_path):
    path = write(tmp_path / "own.json", "own", 60)
    task = load_task("squad", data=path, limit=7)
    assert (len(task.train), len(task.train.ids), len(task.train.answers)) == (7, 7, 7)


def test_questions_without_an_answer_are_not_of_version_1(tmp_path):
    for stem in ("train", "dev"):
        write(tmp_path / f"{stem}-v1.1.json", stem, 9, version_2=True)
    message = (
        r"split train: 9 of 18 questions have no answer, such as 'train-0-b'; use the task "
        r"squad_v2"
    )
    with pytest.raises(LpafError, match=message):
        load_task("squad", data=tmp_path)
    with pytest.raises(LpafError, match="use the task squad_v2"):
        load_task("squad", data=tmp_path / "train-v1.1.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not in SQuAD format"),
        ('{"data": [{"paragraphs": [{"qas": []}, 3]}]}', "not in SQuAD format"),
        (
            '{"data": [{"paragraphs": [{"qas": [{"id": "1", "question": "q"}]}]}]}',
            r"not in SQuAD format \(KeyError: 'answers'\)",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": '
            '[{"id": "1", "question": null, "answers": []}]}]}]}',
            "a value is missing in column 'question'",
        ),
    ],
)
def test_files_of_another_format_are_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(LpafError, match=message):
        read_squad(tmp_path / "x.json")


def test_incomplete_copies_are_refused(tmp_path):
    with pytest.raises(LpafError, match=r"none\.json does not exist"):
        read_squad(tmp_path / "none.json")
    write(tmp_path / "train-v1.1.json", "train", 9)
    message = r"no file for the split 'validation'; it needs one file dev-v1\.1 or validation"
    with pytest.raises(LpafError, match=message):
        load_task("squad", data=tmp_path)


def test_labels_are_in_characters_not_bytes(tmp_path):
    questions = read_squad(write(tmp_path / "a.json", "東京🎬", 1))
    start, end = questions.labels[0]
    assert questions.labels.dtype == np.int32
    assert questions.pairs[0][start:end] == "number0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"question": ["which", "one"]},
            r"question 'a-1-a': its question is \['which', 'one'\], which",
        ),
        (
            {"is_impossible": "false"},
            "question 'a-1-a' has is_impossible 'false', which must be true",
        ),
    ],
)
def test_values_of_another_type_are_named(tmp_path, change, message):
    value = {"data": [article("a", 3, version_2=True)]}
    value["data"][0]["paragraphs"][1]["qas"][0] |= change
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(value))
    with pytest.raises(LpafError, match=message):
        read_squad(path)


def test_a_context_of_another_type_is_named(tmp_path):
    value = {"data": [article("a", 3)]}
    value["data"][0]["paragraphs"][1]["context"] = ["two", "parts"]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(value))
    with pytest.raises(
        LpafError, match=r"question 'a-1-a': its context is \['two', 'parts'\], which"
    ):
        read_squad(path)
