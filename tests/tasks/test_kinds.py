"""The whole job on other kinds of tasks than classification, and on other families than BERT."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import load_task
from lpaf_jax.evaluation.serve import evaluate_file
from lpaf_jax.models import parameters
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.report import write_report
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.tasks.inputs import counts, fingerprint, length_note, load_inputs
from lpaf_jax.tasks.kinds import KINDS
from tests.tiny import HIDDEN, WORDS, Tiny, fine_tuned, write_table, write_tokenizer
from tests.tiny_decoder import SHAPES, write_decoder
from tests.tiny_tasks import WINDOW, graded, write_squad

STAGES = ["dense", "pruned", "factorized", "final"]
_BERT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
TINY: dict[str, dict[str, Any]] = {
    "roberta": _BERT,
    "distilbert": {"dim": HIDDEN, "n_layers": 1, "n_heads": 4, "hidden_dim": 48},
    **SHAPES,
}


def read(folder: Path, name: str = "metrics.json") -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text()))


def validations(run: Path, metric: str) -> list[float]:
    rows = (run / "logs" / "train.jsonl").read_text().splitlines()
    key = f"validation_{metric}"
    return [row[key] for row in map(json.loads, rows) if key in row]


def settings_of(tiny: Tiny, folder: Path, **changes: Any) -> Any:
    return make_settings(**tiny.chosen(folder / "run", **changes))


def test_a_regression_is_learnt_and_judged_by_its_correlations(graded_run: Path) -> None:
    metrics = read(graded_run)
    assert (metrics["kind"], metrics["metrics"]) == ("regression", ["pearson", "spearman"])
    assert list(metrics["stages"]) == STAGES
    for figures in metrics["stages"].values():
        assert figures.keys() == {"n", "pearson", "spearman", "primary"}
        assert figures["n"] == metrics["data"]["test"]
    found = {name: figures["pearson"] for name, figures in metrics["stages"].items()}
    assert found["dense"] > 0.5
    assert found["final"] > 0.4
    assert "paired" not in metrics
    assert metrics["retained"] == pytest.approx(found["final"] / found["dense"])
    assert max(validations(graded_run, "pearson")) > 0.5
    assert len(validations(graded_run, "accuracy")) == 0
    head = load_file(graded_run / "model" / "model.safetensors")["classifier.weight"]
    assert head.shape == (1, HIDDEN)
    config = read(graded_run / "model", "config.json")
    assert (config["num_labels"], config["problem_type"]) == (1, "regression")


def test_questions_are_learnt_through_windows_and_judged_by_their_answers(asked_run: Path) -> None:
    metrics = read(asked_run)
    assert (metrics["kind"], metrics["metrics"]) == ("span", ["f1", "exact"])
    assert list(metrics["stages"]) == STAGES
    for figures in metrics["stages"].values():
        assert figures["HasAns_total"] + figures["NoAns_total"] == metrics["data"]["test"]
    assert metrics["stages"]["dense"]["f1"] > 0.6
    assert metrics["stages"]["final"]["f1"] > 0.6
    assert metrics["stages"]["final"]["HasAns_f1"] > 0.3
    assert metrics["data"]["windows"] > metrics["data"]["train"]
    assert max(validations(asked_run, "f1")) > 0.6
    config = read(asked_run / "model", "config.json")
    assert config["architectures"] == ["LpafBertForQuestionAnswering"]
    assert config["lpaf_reads"] == {
        "length": WINDOW,
        "pairs": True,
        "stride": 128,
        "no_answer": True,
        "metrics": ["f1", "exact"],
    }


@pytest.mark.parametrize("run", ["graded_run", "asked_run"])
def test_a_finished_run_of_any_kind_is_taken_as_it_is_and_its_page_is_the_same(
    request: pytest.FixtureRequest, tiny: Tiny, run: str, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(run)
    before = (folder / "report.html").read_bytes()
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    assert write_report(copy).read_bytes() == before
    chosen = read(folder, "settings.json")
    for name in ("fingerprint", "steps"):
        chosen.pop(name)
    assert compress(**chosen) == read(folder)


def test_a_tuned_model_of_spans_needs_no_training(
    tiny: Tiny, asked_run: Path, tmp_path: Path
) -> None:
    chosen = read(asked_run, "settings.json")
    data = {"task": "squad_v2", "data": chosen["data"], "length": WINDOW, "finetune_epochs": 0}
    source = asked_run / "stages" / "dense"
    settings = settings_of(tiny, tmp_path, model=source, **data)
    model = fine_tuned(settings)
    given = parameters(load_model(source))
    assert all((np.asarray(x) == given[path]).all() for path, x in parameters(model).items())
    bare = dataclasses.replace(settings, model=str(tiny.model))
    with pytest.raises(LpafError, match="has no head, but task squad_v2 needs a span head: fine-t"):
        fine_tuned(bare)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "gpt2", "llama"])
def test_the_classes_of_a_tuned_model_of_any_family_are_known_by_name(
    tiny: Tiny, tmp_path: Path, family: str
) -> None:
    source = tmp_path / family
    source.mkdir()
    values = {"model_type": family, "vocab_size": len(WORDS), "pad_token_id": 0, **TINY[family]}
    (source / "config.json").write_text(json.dumps(values))
    write_tokenizer(source)
    kind = FAMILIES[family]
    made: Any = kind.heads["classification"](kind.config(values), jax.random.key(0))
    settings = settings_of(tiny, tmp_path, model=source, finetune_epochs=0)
    ids = np.arange(4, 12, dtype=np.int32)[None]
    logits = []
    for names in (["negative", "positive"], ["POSITIVE", "NEGATIVE"]):
        save_model(made, source, source=source, label_names=names, card="#\n")
        found = fine_tuned(settings)
        logits.append(np.asarray(found(ids)))
    assert np.abs(logits[0]).max() > 1e-4
    np.testing.assert_array_equal(logits[1], logits[0][:, ::-1])


def write_gpt2(folder: Path, **fields: Any) -> Path:
    values = {"vocab_size": len(WORDS), "n_positions": 32, **fields}
    write_decoder(folder, "gpt2", **values)
    write_tokenizer(folder)
    return folder


@pytest.mark.slow
def test_a_decoder_is_compressed_as_a_classifier(
    tiny: Tiny, held_out: Path, tmp_path: Path
) -> None:
    model = write_gpt2(tmp_path / "gpt2", pad_token_id=0)
    metrics = compress(**tiny.chosen(tmp_path / "run", model=model))
    assert (metrics["family"], metrics["kind"]) == ("gpt2", "classification")
    assert metrics["stages"]["dense"]["accuracy"] > 0.8
    assert metrics["stages"]["final"]["accuracy"] > 0.8
    assert metrics["encoder_params_ratio"] <= 0.5
    assert evaluate_file(tmp_path / "run", held_out) == metrics["stages"]["final"]
    assert "GPT-2-style text classifier" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "gpt2 has no pad token, .* set pad_token_id in its config.json"),
        ({"pad_token_id": 3}, "has pad_token_id 3 in config.json, but its tokenizer pads with 0"),
    ],
)
def test_a_decoder_that_cannot_tell_padding_is_no_classifier(
    tiny: Tiny, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    model = write_gpt2(tmp_path / "gpt2", **fields)
    # What the tokenizer says goes before what config.json says.
    (model / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    with pytest.raises(LpafError, match=message):
        load_inputs(settings_of(tiny, tmp_path, model=model))


def test_a_head_that_a_family_has_not_is_told(tiny: Tiny, tmp_path: Path) -> None:
    model = write_gpt2(tmp_path / "gpt2", pad_token_id=0)
    data = write_squad(tmp_path / "questions.json", 20)
    with pytest.raises(LpafError, match=r"gpt2: gpt2 has no span head here; it has lm, class"):
        load_inputs(settings_of(tiny, tmp_path, model=model, task="squad", data=data))


def test_classes_are_no_numbers(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(LpafError, match=r"'negative', 'positive' where a regression needs a num"):
        load_inputs(settings_of(tiny, tmp_path, regression=True))


def test_windows_share_a_third_at_most_and_it_is_said(tiny: Tiny, tmp_path: Path) -> None:
    data = write_squad(tmp_path / "questions.json", 40)
    asked = {"task": "squad", "data": data, "length": 24}
    capped = load_inputs(settings_of(tiny, tmp_path, **asked))
    assert capped.spec.overlap == 8
    assert "24 tokens, 8 of them shared with the next, as --doc-stride 128" in str(
        length_note(capped)
    )
    chosen = load_inputs(settings_of(tiny, tmp_path, **asked, doc_stride=2))
    assert chosen.spec.overlap == 2
    assert str(length_note(chosen)).endswith("2 of them shared with the next")
    assert len(chosen.train) <= len(capped.train)


def test_no_more_questions_are_validated_than_is_cheap(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_squad(tmp_path / "questions.json", 80)
    settings = settings_of(tiny, tmp_path, task="squad", data=data, length=WINDOW)
    held = len(load_inputs(settings).task.validation)
    assert held > 3
    monkeypatch.setitem(KINDS, "span", KINDS["span"]._replace(validated=3))  # type: ignore[misc]
    inputs = load_inputs(settings)
    assert counts(inputs)["validation"] == 3
    logits = np.zeros((len(inputs.validation), WINDOW, 2))
    assert inputs.validation.score(logits)["n"] == 3


def test_the_fingerprint_tells_another_right_answer(tiny: Tiny, tmp_path: Path) -> None:
    data = write_squad(tmp_path / "questions.json", 40)
    settings = settings_of(tiny, tmp_path, task="squad", data=data, length=WINDOW)
    before = fingerprint(load_inputs(settings))
    asked = load_task("squad", data=data).test
    values = json.loads(data.read_text())
    for paragraph in values["data"][0]["paragraphs"]:
        if paragraph["context"] == asked.pairs[0]:
            answers = paragraph["qas"][0]["answers"]
            answers.append({**answers[0], "text": answers[0]["text"].upper()})
    data.write_text(json.dumps(values))
    assert fingerprint(load_inputs(settings)) != before


def test_values_and_classes_are_other_runs(tiny: Tiny, tmp_path: Path) -> None:
    table = write_table(tmp_path / "praise.csv", graded(60))
    classes, values = (
        load_inputs(settings_of(tiny, tmp_path, task=table, regression=chosen))
        for chosen in (False, True)
    )
    assert classes.task.label_names == ["0", "1", "2", "3", "4"]
    assert fingerprint(classes) != fingerprint(values)
