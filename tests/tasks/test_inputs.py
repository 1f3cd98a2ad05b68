import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.core.errors import LpafError
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.tasks.inputs import Inputs, fingerprint, load_inputs
from tests.tiny import HIDDEN, INNER, LAYERS, POSITIONS, Tiny, sentences, write_table
from tests.tiny_tasks import write_squad


def load(tiny: Tiny, **changes: Any) -> Inputs:
    return load_inputs(make_settings(**tiny.chosen(Path("unused"), **changes)))


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the model, to be damaged."""
    return Path(shutil.copytree(tiny.model, tmp_path / "bert"))


def change_weights(model: Path, name: str, value: float) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] = value
    save_file(tensors, model / "model.safetensors")


def test_what_is_read(tiny: Tiny) -> None:
    inputs = load(tiny)
    assert inputs.source == tiny.model
    assert inputs.positions == POSITIONS
    square, wide = (HIDDEN, HIDDEN), (HIDDEN, INNER)
    assert inputs.shapes == LAYERS * [*4 * [square], wide, wide[::-1]]
    assert inputs.task.label_names == ["negative", "positive"]
    splits = [len(inputs.train), len(inputs.validation), len(inputs.test)]
    assert splits == [len(s) for s in (inputs.task.train, inputs.task.validation, inputs.task.test)]
    assert sum(splits) == 160


@pytest.fixture(scope="module")
def whole(tiny: Tiny) -> dict[str, Any]:
    return fingerprint(load(tiny))


def test_the_fingerprint_is_of_what_is_read_and_not_of_where(
    tiny: Tiny, whole: dict[str, Any], tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny.model, tmp_path / "elsewhere")
    rows = write_table(tmp_path / "same.tsv", sentences(160))
    assert fingerprint(load(tiny, model=moved, task=rows, seed=5, tune_lr=0.1)) == whole


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("text", "training examples"),
        ("label", "training examples"),
        ("order", "training examples"),
        ("names", "classes"),
        ("length", "training examples"),
        ("weight", "weights"),
    ],
)
def test_the_fingerprint_tells_a_change(
    tiny: Tiny, whole: dict[str, Any], model: Path, change: str, part: str
) -> None:
    rows = sentences(160)
    if change == "text":
        rows[7] = (rows[7][0].replace("very ", ""), rows[7][1])
    if change == "label":
        rows[7] = (rows[7][0], rows[8][1])
    if change == "order":
        rows = rows[::-1]
    if change == "names":
        rows = [(text, label[:3]) for text, label in rows]
    if change == "weight":
        change_weights(model, "encoder.layer.1.output.dense.weight", 0.125)
    table = write_table(model.parent / "task.csv", rows)
    changed = load(tiny, model=model, task=table, length=8 if change == "length" else 16)
    found = fingerprint(changed)
    assert found["whole"] != whole["whole"]
    assert found[part] != whole[part]
    if part == "weights":
        assert {name for name in whole if found[name] != whole[name]} == {"whole", "weights"}


@pytest.fixture
def first_words(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """What a run says before its first stage."""

    class EnoughError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise EnoughError

    def run(**changes: Any) -> str:
        with pytest.raises(EnoughError):
            pipeline.compress(**tiny.chosen(tmp_path / "run", quiet=False, **changes))
        return capsys.readouterr().err

    monkeypatch.setattr(pipeline, "do_step", stop)
    return run


def test_rows_that_are_left_out_are_told(first_words: Callable[..., str], tmp_path: Path) -> None:
    rows = sentences(160)
    task = write_table(tmp_path / "task.csv", [*rows, *rows[:12]])
    assert "rows left out, as repeats or as one text of several labels: 12\n" in first_words(
        task=task
    )


def test_lines_of_an_archive_that_are_left_out_are_told(
    first_words: Callable[..., str], tmp_path: Path
) -> None:
    rows = [f"{text}\t{label == 'positive':d}" for text, label in sentences(160)]
    for stem in ("train", "dev"):
        (tmp_path / f"{stem}.tsv").write_text("\n".join(["sentence\tlabel", "broken", *rows]))
    told = "lines of the archive left out, as broken or without a label: 2\n"
    assert told in first_words(task="sst2", data=tmp_path)


def test_answers_in_the_wrong_place_are_warned_of(
    first_words: Callable[..., str], tmp_path: Path
) -> None:
    data = write_squad(tmp_path / "questions.json", 40)
    values = json.loads(data.read_text())
    for paragraph in values["data"][0]["paragraphs"]:
        paragraph["qas"][0]["answers"][0]["answer_start"] -= 1
    data.write_text(json.dumps(values))
    said = first_words(task="squad", data=data, limit=9)
    assert "warning: 9 of 9 training answers are not at their answer_start in" in said


def test_a_text_the_model_cannot_read_is_refused(tiny: Tiny) -> None:
    load(tiny, length=POSITIONS)
    with pytest.raises(LpafError, match=r"length is 33.*32 tokens"):
        load(tiny, length=POSITIONS + 1)


def test_weights_that_are_nan_are_refused(tiny: Tiny, model: Path) -> None:
    change_weights(model, "encoder.layer.0.output.dense.weight", np.nan)
    with pytest.raises(LpafError, match=r"layer\.0\.output\.dense\.weight contains NaN"):
        load(tiny, model=model)


def test_another_kind_of_model_is_refused(tiny: Tiny, model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "t5", "n_embd": 32}))
    with pytest.raises(LpafError, match="'t5' is not supported"):
        load(tiny, model=model)


def test_a_factorized_model_is_refused(tiny: Tiny, finished: Path) -> None:
    with pytest.raises(LpafError, match="already factorized"):
        load(tiny, model=finished / "model")
    assert load(tiny, model=finished / "stages" / "dense").shapes == load(tiny).shapes
