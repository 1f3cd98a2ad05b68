"""What config.json says of outputs, beside what transformers makes of it."""

from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.checkpoints.outputs import answers_of, class_names
from lpaf_jax.core.errors import LpafError

PLACE = Path("folder")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"id2label": None, "label2id": None},
        {"id2label": {"0": "negative", "1": "positive"}},
        {"id2label": {"1": "positive", "0": "negative"}},
        {"id2label": {"0": 0, "1": 1}},
        {"id2label": {"0": 1, "1": 0}},
        {"id2label": {"0": 1.5, "1": True}},
        {"id2label": {"0": "x", "1": "x"}},
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"b": 0, "a": 1}},
        {"label2id": {"negative": 0, "positive": 1}},
        {"num_labels": 3},
        {"num_labels": 3, "id2label": {"0": "a", "1": "b"}},
        {"num_labels": 1, "id2label": {"0": "a", "1": "b"}},
        {"num_labels": 3, "label2id": {"a": 0, "b": 1, "c": 2}},
    ],
    ids=str,
)
def test_classes_are_called_as_in_transformers(fields: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertConfig.from_dict(fields)
    expected = [str(theirs.id2label[i]) for i in range(theirs.num_labels)]
    assert class_names(fields, PLACE) == expected


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"id2label": ["negative", "positive"]}, r'must name .* it is \["negative", "positive"\]'),
        ({"id2label": "negative"}, 'by its number, .* it is "negative"'),
        ({"id2label": {"negative": 0, "positive": 1}}, 'it is {"negative": 0, "positive": 1}'),
        ({"id2label": {"1": "negative", "2": "positive"}}, "folder: .* the outputs 1, 2, but .* 0"),
        ({"id2label": {"0": "negative", "2": "positive"}}, "folder: .* the outputs 0, 2, but .* 0"),
        ({"id2label": {"0": None, "1": "positive"}}, "folder: .* has None for output 0"),
        ({"id2label": {"0": ["a"], "1": "b"}}, r"folder: .* has \['a'\] for output 0"),
        ({"id2label": {}}, "folder: config.json gives the head 0 outputs"),
        ({"num_labels": 0}, "folder: config.json gives the head 0 outputs"),
        ({"num_labels": "2"}, "num_labels is '2', but must be a whole number"),
    ],
    ids=str,
)
def test_names_that_are_none_are_one_clear_line(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(LpafError, match=told) as caught:
        class_names(fields, PLACE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "problem", "answer"),
    [
        (2, None, "classification"),
        (2, "single_label_classification", "classification"),
        (2, "of another tool", "classification"),
        (2, ["a list"], "classification"),
        (1, None, "regression"),
        (1, "regression", "regression"),
        (2, "multi_label_classification", None),
        (1, "multi_label_classification", None),
        (3, "regression", None),
        (1, "single_label_classification", None),
    ],
    ids=str,
)
def test_what_outputs_answer(number: int, problem: Any, answer: str | None) -> None:
    fields = {"num_labels": number, "problem_type": problem}
    if answer is not None:
        assert answers_of(fields, PLACE) == answer
        return
    with pytest.raises(LpafError, match=rf"folder has {number} outputs? of problem_type {problem}"):
        answers_of(fields, PLACE)


def test_half_of_an_emoji_in_a_name_can_be_printed(tmp_path):
    assert class_names({"id2label": {"0": "n\ud83d", "1": "\ud83d\ude00"}}, tmp_path) == [
        "n\ufffd",
        "\U0001f600",
    ]
