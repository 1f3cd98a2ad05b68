"""Values and answers from saved models; classes are in evaluation/test_serve.py."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import Examples, Questions, encode, load_task, normalise_answer
from lpaf_jax.evaluation.serve import Said, evaluate_file, load_predictor
from tests.tiny import Tiny
from tests.tiny_decoder import write_decoder
from tests.tiny_tasks import QUESTION, WINDOW

STAGES = ("dense", "pruned", "factorized", "final")


def record(folder: Path, name: str = "metrics.json") -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text()))


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Up to what batches of other sizes round otherwise."""
    assert found.keys() == expected.keys()
    assert found["primary"] == expected["primary"]
    numbers = expected.keys() - {"primary"}
    assert [found[k] for k in numbers] == pytest.approx([expected[k] for k in numbers], rel=1e-3)


def graded_test(run: Path) -> Examples:
    return load_task(record(run, "settings.json")["task"], regression=True).test


def asked_test(run: Path) -> Questions:
    found = load_task("squad_v2", data=record(run, "settings.json")["data"]).test
    assert isinstance(found, Questions)
    return found


def write_questions(path: Path, questions: Questions) -> Path:
    paragraphs = []
    for i, text in enumerate(questions.texts):
        starts = [int(questions.labels[i][0])] * len(questions.answers[i])
        given = zip(questions.answers[i], starts, strict=True)
        answers = [{"text": answer, "answer_start": start} for answer, start in given]
        asked = {"id": questions.ids[i], "question": text, "answers": answers}
        paragraphs.append({"context": questions.pairs[i], "qas": [asked]})
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return path


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_of_values_gives_what_the_run_measured(
    graded_run: Path, tmp_path: Path, stage: str
) -> None:
    test = graded_test(graded_run)
    path = tmp_path / "test.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "value"), *zip(test.texts, test.labels, strict=True)])
    found = evaluate_file(
        graded_run, path, stage=stage, batch=5, text_column="text", label_column="value"
    )
    same(found, record(graded_run)["stages"][stage])


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_of_questions_gives_what_the_run_measured(
    asked_run: Path, tmp_path: Path, stage: str
) -> None:
    path = write_questions(tmp_path / "test.json", asked_test(asked_run))
    found = evaluate_file(asked_run, path, stage=stage, batch=5)
    same(found, record(asked_run)["stages"][stage])


def test_values_are_printed_before_their_texts(graded_run: Path) -> None:
    predictor = load_predictor(graded_run)
    texts = graded_test(graded_run).texts[:5]
    examples = Examples(texts, None, np.zeros(5, np.float32))
    values = predictor.logits(encode(predictor.tokenizer, examples, 16), 2)[:, 0]
    found = list(predictor.predict(texts, batch=2))
    assert [said.answer for said in found] == pytest.approx(values.tolist(), abs=1e-5)
    assert [said.line for said in found] == [
        f"{said.answer:.4f}\t{text}" for said, text in zip(found, texts, strict=True)
    ]


def test_questions_are_answered_as_they_were_judged(asked_run: Path) -> None:
    questions = asked_test(asked_run)
    lines = [f"{q}\t{c}" for q, c in zip(questions.texts, questions.pairs, strict=True)]
    said = list(load_predictor(asked_run).predict(iter(lines), batch=4))
    assert [one.text for one in said] == lines
    right = [
        normalise_answer(str(one.answer)) in map(normalise_answer, answers or [""])
        for one, answers in zip(said, questions.answers, strict=True)
    ]
    assert np.mean(right) == pytest.approx(record(asked_run)["stages"]["final"]["exact"])
    none = [one for one in said if one.answer == ""]
    assert 0 < len(none) < len(said)
    assert none[0].line == f"\t{none[0].score:.4f}\t{none[0].text}"


def test_a_model_that_must_answer_answers(asked_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(asked_run / "model", tmp_path / "model"))
    config = record(copy, "config.json")
    del config["lpaf_reads"]  # as in a folder from elsewhere
    (copy / "config.json").write_text(json.dumps(config))
    questions = asked_test(asked_run)
    lines = [f"{q}\t{c}" for q, c in zip(questions.texts, questions.pairs, strict=True)]
    predictor = load_predictor(copy, length=WINDOW)
    assert all(said.answer for said in predictor.predict(lines))
    # A file with questions that have no answer is judged as such all the same.
    found = evaluate_file(copy, write_questions(tmp_path / "t.json", questions), length=WINDOW)
    same(found, record(asked_run)["stages"]["final"])
    answered = questions.take(np.flatnonzero([bool(a) for a in questions.answers]))
    found = evaluate_file(copy, write_questions(tmp_path / "t.json", answered), length=WINDOW)
    assert found.keys() == {"exact", "f1", "n", "primary"}


def test_a_line_that_cannot_be_read_is_named_after_the_answers_before_it(asked_run: Path) -> None:
    predictor = load_predictor(asked_run)
    good = f"{QUESTION}\tthis is warm ."
    for bad, told in (
        ("no tab", "one question and one context per line, separated by a tab: 'no tab'"),
        (f"{'is it ' * 5}\tthis is warm .", "the question is too long for a window of 16 tokens"),
    ):
        answers = predictor.predict([good, bad, good])
        assert next(answers).answer == "warm"
        with pytest.raises(LpafError, match=rf"^line 2: .*{told}"):
            next(answers)


def test_a_context_without_a_word_has_no_answer(asked_run: Path) -> None:
    ((_, answer, _),) = load_predictor(asked_run).predict([f"{QUESTION}\t "])
    assert answer == ""


def test_a_file_of_another_kind_is_refused(
    graded_run: Path, asked_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        LpafError, match=r"t\.csv does not fit the model: it needs a \.json file in"
    ):
        evaluate_file(asked_run, tmp_path / "t.csv")
    with pytest.raises(LpafError, match=r"t\.json\.gz is packed, by its name: unpack it"):
        evaluate_file(asked_run, tmp_path / "t.json.gz")
    path = write_questions(tmp_path / "t.json", asked_test(asked_run))
    with pytest.raises(LpafError, match=r"t\.json is one JSON object \('data'\), not rows"):
        evaluate_file(graded_run, path)


def test_a_language_model_answers_nothing(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(LpafError, match="is a language model and has no classification head"):
        load_predictor(folder)


@pytest.mark.parametrize("run", ["graded_run", "asked_run"])
@pytest.mark.parametrize("stage", ["dense", "final"])
def test_the_card_tells_python_how_to_use_the_model(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    tiny: Tiny,
    run: str,
    stage: str,
) -> None:
    folder = request.getfixturevalue(run)
    own = folder / ("model" if stage == "final" else f"stages/{stage}")
    code = (own / "README.md").read_text().split("```python\n")[1].split("```")[0]
    if run == "asked_run":  # its windows are too small for the words of the card
        code = code.replace("who made the film?", "is it")
    exec(code.replace("RUN", str(folder)), {})
    assert capsys.readouterr().out.strip()


def test_a_line_holds_what_there_is() -> None:
    assert Said("a b", "good", 0.75).line == "good\t0.7500\ta b"
    assert Said("a b", 2.5, None).line == "2.5000\ta b"
    assert Said("q\tc", "", 1.5).line == "\t1.5000\tq\tc"
