"""What the commands call the outputs of a model, whatever its config.json says of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.serve import evaluate_file, load_predictor
from tests.tiny import Tiny, write_table

Capture = pytest.CaptureFixture[str]
Model = Callable[..., Path]
TEXT = "the superb film is very warm ."


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Model:
    """Makes a copy of the fine-tuned model with other fields in its config; None takes one out."""

    def make(**fields: Any) -> Path:
        place = Path(shutil.copytree(finished / "stages" / "dense", tmp_path / "other"))
        config = json.loads((place / "config.json").read_text()) | {"num_labels": None} | fields
        left = {key: value for key, value in config.items() if value is not None}
        (place / "config.json").write_text(json.dumps(left))
        return place

    return make


def ids(*names: Any) -> dict[str, Any]:
    return {"id2label": {str(i): name for i, name in enumerate(names)}}


def labelled(held_out: Path, path: Path, negative: str, positive: str) -> Path:
    """The held-out texts with other words for their labels."""
    words = {"negative": negative, "positive": positive}
    rows = [line.split("\t") for line in held_out.read_text().splitlines()[1:]]
    return write_table(path, [(text, words[label]) for text, label in rows])


@pytest.mark.parametrize(
    ("fields", "answer", "labels"),
    [
        (ids(0, 1), "1", ("0", "1")),
        (ids(1, 0), "0", ("1", "0")),  # names go before positions
        ({"id2label": None, "label2id": None}, "LABEL_1", ("LABEL_0", "1")),
        ({"id2label": None, "num_labels": 2}, "LABEL_1", ("0", "1")),
        (ids("1 star", "2 stars"), "2 stars", ("1 star", "2 stars")),
        (ids("LABEL_0", "LABEL_1"), "LABEL_1", ("0", "LABEL_1")),
    ],
    ids=str,
)
def test_names_of_any_kind_are_answered_and_known(
    finished: Path,
    held_out: Path,
    tmp_path: Path,
    model: Model,
    fields: dict[str, Any],
    answer: str,
    labels: tuple[str, str],
) -> None:
    place = model(**fields)
    ((_, said, _),) = load_predictor(place).predict([TEXT])
    assert said == answer
    found = evaluate_file(place, labelled(held_out, tmp_path / "data.csv", *labels))
    assert found["accuracy"] == evaluate_file(finished, held_out, stage="dense")["accuracy"]


def test_a_number_that_may_be_another_class_is_no_position(
    held_out: Path, tmp_path: Path, model: Model
) -> None:
    data = labelled(held_out, tmp_path / "data.csv", "0", "1")
    with pytest.raises(LpafError, match="unknown label '0', '1'; expected one of '1 star', '2"):
        evaluate_file(model(**ids("1 star", "2 stars")), data)


def test_two_classes_of_one_name(
    held_out: Path, tmp_path: Path, model: Model, capsys: Capture
) -> None:
    place = model(**ids("x", "x"))
    ((_, said, _),) = load_predictor(place).predict([TEXT])
    assert said == "x"
    data = labelled(held_out, tmp_path / "data.csv", "0", "1")
    with pytest.raises(LpafError, match="calls two classes 'x', so its labels are ambiguous"):
        evaluate_file(place, data)
    assert main(["inspect", str(place)]) == 0
    assert "2: x, x" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["predict", "evaluate", "inspect", "onnx", "dense"])
@pytest.mark.parametrize("labels", [["negative", "positive"], "positive", {"positive": 1}])
def test_labels_that_name_no_output_are_one_line_in_every_command(
    held_out: Path, tmp_path: Path, model: Model, capsys: Capture, command: str, labels: Any
) -> None:
    if command == "onnx":
        for package in ("torch", "onnx", "onnxscript"):
            pytest.importorskip(package)
    place = model(id2label=labels)
    more = {
        "evaluate": ["--data", str(held_out)],
        "onnx": ["--format", "onnx", "--out", str(tmp_path / "out")],
        "dense": ["--format", "dense", "--dtype", "bfloat16", "--out", str(tmp_path / "out")],
    }
    word = "export" if command in ("onnx", "dense") else command
    assert main([word, str(place), *more.get(command, [])]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("lpaf: error: ")
    assert "id2label must name each class by its number" in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message", "inspected"),
    [
        (
            {"problem_type": "multi_label_classification"},
            "has 2 outputs of problem_type multi_label_classification",
            "a text can have several",
        ),
        (
            {"problem_type": "regression"},
            "has 2 outputs of problem_type regression",
            "2 numbers (regression)",
        ),
    ],
    ids=str,
)
def test_outputs_that_are_no_classes_are_not_taken_for_some(
    held_out: Path,
    model: Model,
    capsys: Capture,
    fields: dict[str, Any],
    message: str,
    inspected: str,
) -> None:
    place = model(**fields)
    for words in (["predict", str(place)], ["evaluate", str(place), "--data", str(held_out)]):
        assert main(words) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert (said.out, said.err.count("\n")) == ("", 1)
    assert main(["inspect", str(place)]) == 0
    assert inspected in capsys.readouterr().out


def test_a_head_of_several_numbers_gives_its_encoder_to_a_task(
    tiny: Tiny, tmp_path: Path, model: Model
) -> None:
    from lpaf_jax.runs.settings import make_settings
    from lpaf_jax.tasks.inputs import load_inputs

    place = model(problem_type="regression", **ids("a", "b"))
    settings = make_settings(**tiny.chosen(tmp_path / "run", model=place))
    assert load_inputs(settings).task.label_names == ["negative", "positive"]
