"""A checkpoint that is trained already, and its classes beside those of a task."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.progress import Progress
from lpaf_jax.data import load_task
from lpaf_jax.evaluation.serve import load_predictor
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.run import Run
from lpaf_jax.runs.settings import Settings, make_settings
from lpaf_jax.stages import FineTune
from lpaf_jax.tasks.heads import order_by_name
from lpaf_jax.tasks.inputs import fingerprint, load_inputs
from tests.tiny import Tiny, write_table

Capture = pytest.CaptureFixture[str]
Turned = Callable[..., Path]


@pytest.fixture
def turned(finished: Path, tmp_path: Path) -> Turned:
    """Makes a copy of the fine-tuned model, its two outputs exchanged, with a config of its own."""

    def make(**fields: Any) -> Path:
        place = Path(shutil.copytree(finished / "stages" / "dense", tmp_path / "turned"))
        config = json.loads((place / "config.json").read_text())
        for name in ("id2label", "label2id", "num_labels"):
            del config[name]
        (place / "config.json").write_text(json.dumps(config | fields))
        tensors = load_file(place / "model.safetensors")
        for name in ("classifier.weight", "classifier.bias"):
            tensors[name] = tensors[name][::-1].copy()
        save_file(tensors, place / "model.safetensors")
        return place

    return make


def named(*names: Any) -> dict[str, Any]:
    return {"id2label": {str(i): name for i, name in enumerate(names)}}


def settings_of(tiny: Tiny, tmp_path: Path, model: Path, **changes: Any) -> Settings:
    chosen = {"model": model, "finetune_epochs": 0} | changes
    return make_settings(**tiny.chosen(tmp_path / "run", **chosen))


def taken(settings: Settings) -> Path:
    """The folder of the model after the first stage."""
    inputs, job = load_inputs(settings), Run(settings)
    with job.opened(fingerprint(inputs)):
        pipeline.do_step(job, inputs, Progress(job.folder, quiet=True), "dense")
    return job.stage("dense")


def accuracy(folder: Path, data: Path) -> float:
    """As PyTorch tells classes by the folder alone."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer, task = load_predictor(folder).tokenizer, load_task(str(data))
    right = []
    for text, label in zip(task.test.texts, task.test.labels, strict=True):
        ids = tokenizer.encode([text], None, max_length=16)[0][0]
        with torch.no_grad():
            logits = model(torch.tensor(np.asarray(ids)).long()[None]).logits
        name = model.config.id2label[int(logits.argmax())]
        right.append(name == task.label_names[label])
        assert model.config.label2id[name] == int(logits.argmax())
    return float(np.mean(right))


@pytest.mark.parametrize(
    ("names", "score"),
    [
        (("POSITIVE", "negative"), "high"),  # the same set: by name
        (("pos", "neg"), "low"),  # nothing in common: in order, which is the wrong one here
    ],
    ids=str,
)
def test_pytorch_reads_the_classes_that_the_task_names(
    tiny: Tiny, turned: Turned, tmp_path: Path, names: tuple[str, str], score: str
) -> None:
    place = taken(settings_of(tiny, tmp_path, turned(**named(*names))))
    found = accuracy(place, tiny.data)
    assert found > 0.9 if score == "high" else found < 0.1


def test_a_task_of_numbers_knows_classes_that_are_numbers(
    tiny: Tiny, turned: Turned, tmp_path: Path
) -> None:
    rows = [line.rsplit(",", 1) for line in tiny.data.read_text().splitlines()[1:]]
    data = [(text, str(int(label == "positive"))) for text, label in rows]
    table = write_table(tmp_path / "numbers.csv", data)
    place = taken(settings_of(tiny, tmp_path, turned(**named(1, 0)), task=table))
    assert accuracy(place, table) > 0.9


@pytest.mark.parametrize(
    ("fields", "theirs"),
    [
        ({}, "LABEL_0, LABEL_1"),
        ({"id2label": None}, "LABEL_0, LABEL_1"),
        ({"label2id": {"positive": 0, "negative": 1}}, "LABEL_0, LABEL_1"),
        (named("pos", "neg"), "pos, neg"),
        (named(1, 0), "1, 0"),
        (named("positive", "negative"), None),
    ],
    ids=str,
)
def test_classes_taken_in_order_are_told_before_any_work(
    tiny: Tiny,
    turned: Turned,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    theirs: str | None,
) -> None:
    def stop(*_: Any) -> None:
        raise LpafError("work begins")

    monkeypatch.setattr(FineTune, "run", stop)
    model = turned(**fields)
    words = tiny.arguments(tmp_path / "run", model=model, finetune_epochs=0, quiet=False)
    assert main(words) == 2
    said, _, rest = capsys.readouterr().err.partition("lpaf: error: work begins")
    assert rest == "\n"
    warning = (
        f"warning: the classes {theirs} of {model} are taken to be negative, positive of the task"
    )
    assert (warning in said) == (theirs is not None)
    assert ("in this order" in said) == (theirs is not None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (named("positive", "neg"), "has the classes positive, neg, and task task has negative, p"),
        (named("negative", "negative"), "which match only in part"),
        (named("a", "b", "c"), "has 3 outputs, but the task needs 2: fine-tune it"),
        (named("score"), "has 1 output, but the task needs 2: fine-tune it"),
        ({"id2label": ["positive", "negative"]}, "id2label must name each class by its number"),
        ({"id2label": {"1": "positive", "2": "negative"}}, "numbered from 0 to 1"),
        ({"problem_type": "multi_label_classification"}, "2 outputs of problem_type multi_label"),
    ],
    ids=str,
)
def test_a_head_that_cannot_serve_is_refused_before_any_work(
    tiny: Tiny, turned: Turned, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(LpafError, match=message):
        load_inputs(settings_of(tiny, tmp_path, turned(**fields)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"problem_type": "multi_label_classification"},
        named("positive", "neg"),
        {"id2label": ["positive", "negative"]},
        {"id2label": {"1": "positive", "2": "negative"}},
    ],
    ids=str,
)
def test_a_head_that_is_to_be_trained_may_come_from_anywhere(
    tiny: Tiny, turned: Turned, tmp_path: Path, fields: dict[str, Any]
) -> None:
    place = turned(**fields)
    inputs = load_inputs(settings_of(tiny, tmp_path, place, finetune_epochs=1.0))
    assert inputs.order is None


def test_a_change_of_the_order_is_another_run(tiny: Tiny, turned: Turned, tmp_path: Path) -> None:
    place = turned(**named("positive", "negative"))
    settings = settings_of(tiny, tmp_path, place)
    one = load_inputs(settings)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | named("negative", "positive")))
    other = load_inputs(settings)
    assert (one.order, other.order) == ([1, 0], [0, 1])
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    ("theirs", "ours", "order"),
    [
        (["b", "a"], ["a", "b"], [1, 0]),
        (["C", "a", "B "], ["A", "b", "c"], [1, 2, 0]),
        (["1.0", "0.0"], ["0", "1"], [1, 0]),
        (["a", "A"], ["A", "a"], [1, 0]),
        (["A", "A"], ["A", "a"], None),
        (["a", "a"], ["a", "a"], None),
        (["a", "b", "c"], ["a", "b"], None),
        (["a", "c"], ["a", "b"], None),
        ([], ["a", "b"], None),
        ([], [], None),
        (["ß", "STRASSE"], ["straße", "SS"], [1, 0]),
    ],
)
def test_order_by_name(theirs: list[str], ours: list[str], order: list[int] | None) -> None:
    assert order_by_name(theirs, ours) == order
