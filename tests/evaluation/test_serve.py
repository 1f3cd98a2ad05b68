import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import Examples, encode
from lpaf_jax.evaluation.serve import Predictor, evaluate_file, load_predictor
from tests.tiny import FAST, POSITIONS, Tiny, sentences

STAGES = ("dense", "pruned", "factorized", "final")


@pytest.fixture(scope="module")
def predictor(finished: Path) -> Predictor:
    return load_predictor(finished)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_gives_what_the_run_measured(finished: Path, held_out: Path, stage: str) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    found = evaluate_file(finished, held_out, stage=stage, batch=5)
    assert found == metrics["stages"][stage]
    assert found["n"] == metrics["data"]["test"]
    correct = sum(
        found["per_class"][c]["recall"] * found["per_class"][c]["n"] for c in found["per_class"]
    )
    assert found["accuracy"] == pytest.approx(correct / found["n"])


def test_the_stages_are_not_all_the_same_model(finished: Path) -> None:
    logits = []
    for stage in STAGES:
        predictor = load_predictor(finished, stage=stage)
        examples = Examples([text for text, _ in sentences(4)], None, np.zeros(4, np.int32))
        logits.append(predictor.logits(encode(predictor.tokenizer, examples, 16), 4))
    for one, other in itertools.combinations(logits, 2):
        assert np.abs(one - other).max() > 1e-3


def test_columns_may_have_other_names_and_labels_be_numbers(
    finished: Path, held_out: Path, tmp_path: Path
) -> None:
    numbers = {"negative": "0", "positive": "1", "label": "y", "sentence": "x"}
    rows = [line.split("\t") for line in held_out.read_text().splitlines()]
    other = tmp_path / "other.csv"
    other.write_text("".join(f'"{numbers.get(t, t)}",{numbers[y]}\n' for t, y in rows))
    found = evaluate_file(finished, other, text_column="x", label_column="y")
    assert found == evaluate_file(finished, held_out)


@pytest.mark.parametrize("model", ["", "model", "stages/pruned"])
def test_columns_left_out_are_those_of_the_run(copy: Path, held_out: Path, model: str) -> None:
    expected = evaluate_file(copy / model, held_out)
    settings = json.loads((copy / "settings.json").read_text())
    chosen = {"text_column": "x", "label_column": "y"}
    (copy / "settings.json").write_text(json.dumps(settings | chosen))
    other = copy / "other.tsv"
    other.write_text(held_out.read_text().replace("sentence\tlabel", "x\ty", 1))
    assert evaluate_file(copy / model, other) == expected
    named = {"text_column": "sentence", "label_column": "label"}
    assert evaluate_file(copy / model, held_out, **named) == expected
    with pytest.raises(LpafError, match="no column 'x'; its columns are 'sentence', 'label'"):
        evaluate_file(copy / model, held_out)


def test_the_second_text_left_out_is_that_of_the_run(copy: Path, held_out: Path) -> None:
    settings = json.loads((copy / "settings.json").read_text())
    (copy / "settings.json").write_text(json.dumps(settings | {"pair_column": "label"}))
    with pytest.raises(LpafError, match="reads single texts: leave --pair-column label out"):
        evaluate_file(copy, held_out)


def test_a_model_folder_is_its_own_final_stage(finished: Path, held_out: Path) -> None:
    assert evaluate_file(finished / "model", held_out) == evaluate_file(finished, held_out)
    dense = evaluate_file(finished / "stages" / "dense", held_out)
    assert dense == evaluate_file(finished, held_out, stage="dense")
    with pytest.raises(LpafError, match="model is a model and has no stages: leave --stage d"):
        load_predictor(finished / "model", stage="dense")


@pytest.mark.parametrize("stage", ["dense", "final"])
def test_the_card_tells_python_how_to_use_the_model(
    finished: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    own = finished / ("model" if stage == "final" else f"stages/{stage}")
    card = (own / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    alone = code.replace(f', stage="{stage}"', "")
    printed = []
    for given, folder in ((code, finished), (alone, own)):
        exec(given.replace("RUN", str(folder)), {})
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].split()[0] in ("negative", "positive")


def test_a_stage_that_is_not_there_is_told_with_those_that_are(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(LpafError, match="does not exist"):
        load_predictor(tmp_path / "none")
    with pytest.raises(LpafError, match="it has none$"):
        load_predictor(tmp_path)
    shutil.rmtree(copy / "stages" / "pruned")
    with pytest.raises(LpafError, match="'pruned'; it has dense, factorized, final$"):
        load_predictor(copy, stage="pruned")
    shutil.rmtree(copy / "stages")
    with pytest.raises(LpafError, match=r"it has final; .*\(--keep final\)$"):
        load_predictor(copy, stage="dense")


def test_a_model_without_a_head_is_refused(tiny: Tiny) -> None:
    with pytest.raises(LpafError, match="no classification head"):
        load_predictor(tiny.model)


def test_a_head_that_only_the_config_tells_of_is_refused(copy: Path) -> None:
    weights = load_file(copy / "model" / "model.safetensors")
    bare = {name: x for name, x in weights.items() if not name.startswith("classifier.")}
    save_file(bare, copy / "model" / "model.safetensors")
    with pytest.raises(LpafError, match="has no classification head: classifier"):
        load_predictor(copy)


def test_a_model_of_pairs_reads_two_texts(copy: Path, held_out: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "model" / "config.json").read_text())
    config["lpaf_reads"] = {"length": 16, "pairs": True}
    (copy / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LpafError, match="--pair-column"):
        evaluate_file(copy, held_out)
    predictor = load_predictor(copy)
    text, other = "the film is superb", "a dull plot"
    examples = Examples([text], [other], np.zeros(1, np.int32))
    logits = predictor.logits(encode(predictor.tokenizer, examples, 16), 1)[0]
    ((given, _, probability),) = predictor.predict([f"{text}\t{other}"])
    assert given == f"{text}\t{other}"
    assert probability == pytest.approx(1 / (1 + np.exp(-abs(logits[1] - logits[0]))), abs=1e-5)


def test_a_line_that_is_no_pair_is_named_after_the_answers_before_it(
    predictor: Predictor,
) -> None:
    reader = dataclasses.replace(predictor, spec=predictor.spec._replace(pairs=True))
    lines = ["a\tb", "the film\tis warm", "c\td", "superb", "e\tf", "a\tb\tc"]
    for batch in (1, 2, 3, 4, 9):
        answers = reader.predict(iter(lines), batch=batch)
        assert [next(answers)[0] for _ in range(3)] == lines[:3]
        with pytest.raises(LpafError, match="^line 4: .* separated by a tab: 'superb'$"):
            next(answers)
    with pytest.raises(LpafError, match="^line 1: "):
        next(reader.predict(lines[5:]))


def test_a_second_text_is_refused_by_a_model_of_one(copy: Path, held_out: Path) -> None:
    with pytest.raises(LpafError, match="reads single texts: leave --pair-column label out"):
        evaluate_file(copy, held_out, pair_column="label")
    config = json.loads((copy / "model" / "config.json").read_text())
    del config["lpaf_reads"]  # as in a folder from elsewhere, which may read two
    (copy / "model" / "config.json").write_text(json.dumps(config))
    found = evaluate_file(copy, held_out, pair_column="label")
    assert found["n"] == evaluate_file(copy, held_out)["n"]


def test_the_length_is_the_runs_and_never_more_than_the_model_reads(
    finished: Path, predictor: Predictor
) -> None:
    assert predictor.spec.length == FAST["length"]
    assert load_predictor(finished, length=8).spec.length == 8
    assert load_predictor(finished / "model").spec.length == FAST["length"]
    with pytest.raises(LpafError, match="length is 33.*32 tokens"):
        load_predictor(finished, length=POSITIONS + 1)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_holds_something(
    finished: Path, held_out: Path, predictor: Predictor, batch: int
) -> None:
    with pytest.raises(LpafError, match="batch is"):
        evaluate_file(finished, held_out, batch=batch)
    with pytest.raises(LpafError, match="batch is"):
        next(predictor.predict(["a"], batch=batch))


def test_predictions_come_in_order_with_the_probability_of_the_label(
    predictor: Predictor,
) -> None:
    texts = [text for text, _ in sentences(11)] + ["", "  ", "näïve 漢字 🙂", "very " * 60]
    examples = Examples(texts, None, np.zeros(len(texts), np.int32))
    logits = predictor.logits(encode(predictor.tokenizer, examples, 16), 4).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = list(predictor.predict(iter(texts), batch=4))
    assert [text for text, _, _ in found] == texts
    assert [label for _, label, _ in found] == [
        predictor.spec.label_names[i] for i in logits.argmax(-1)
    ]
    assert [p for _, _, p in found] == pytest.approx(expected.max(-1), rel=1e-5)
    assert len({label for _, label, _ in found}) == 2


def test_no_more_texts_are_read_than_one_batch_ahead(predictor: Predictor) -> None:
    drawn: list[int] = []

    def endless() -> Iterator[str]:
        for i in itertools.count():
            drawn.append(i)
            yield "the film is warm ."

    answers: Any = predictor.predict(endless(), batch=3)
    assert drawn == []
    for answered in range(1, 8):
        next(answers)
        assert len(drawn) == 3 * -(-answered // 3)


def test_no_text_has_no_answer(predictor: Predictor) -> None:
    assert list(predictor.predict([])) == []


def test_a_token_without_an_embedding_is_named_after_the_answers_before_it(
    predictor: Predictor,
) -> None:
    """The vocabulary has no [MASK]: BertTokenizer adds it beyond the table."""
    answers = predictor.predict(["a warm film .", "the [MASK] plot .", "a dull film ."])
    assert next(answers).text == "a warm film ."
    with pytest.raises(LpafError, match=r"line 2: the text contains '\[MASK\]', .*no embedding"):
        next(answers)
