"""Runs on other kinds of tasks than classification, and those that have another primary metric."""

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from lpaf_jax.report import cautions, model_card, result_table, summary_line
from lpaf_jax.report.logs import Phase, read_log
from lpaf_jax.report.words import validation_and_test, verdicts
from tests.report.conftest import lay_out, told
from tests.report.test_html import Page, page_of

ROOT = Path(__file__).parents[2]


def of_kind(metrics, kind, primary, stages, **more):
    """The synthetic run with other figures: of dense, pruned, factorized and final model."""
    del metrics["paired"]
    figures = dict(zip(metrics["stages"], stages, strict=True))
    ratio = stages[-1][primary] / stages[0][primary]
    return (
        metrics
        | {"kind": kind, "metrics": list(stages[0]), "stages": figures}
        | {
            "retained": ratio if ratio > 0 else None,
            **more,
        }
    )


@pytest.fixture
def regression(metrics):
    values = (0.872, 0.871, 0.5, 0.86)
    stages = [{"pearson": value, "spearman": value - 0.01} for value in values]
    settings = metrics["settings"] | {"task": "stsb", "regression": False}
    return of_kind(
        metrics, "regression", "pearson", stages, task="stsb", family="roberta", settings=settings
    )


@pytest.fixture
def spans(metrics):
    stages = [{"f1": f1, "exact": f1 - 0.1} for f1 in (0.8, 0.79, 0.4, 0.76)]
    settings = metrics["settings"] | {"task": "squad_v2", "data": None}
    run = of_kind(metrics, "span", "f1", stages, task="squad_v2", family="bert", settings=settings)
    for entry in run["stages"].values():
        for part in ("HasAns", "NoAns"):
            entry |= {f"{part}_f1": 0.5, f"{part}_exact": 0.4, f"{part}_total": 853}
    run["data"] = {"train": 900, "validation": 100, "test": 1706, "windows": 1200}
    return run


@pytest.fixture
def mcc(metrics):
    """CoLA: the correlation comes first, and the accuracy beside it."""
    for entry, value in zip(metrics["stages"].values(), (0.52, 0.5, 0.1, 0.49), strict=True):
        entry["mcc"] = value
    metrics["settings"] |= {"task": "cola"}
    return metrics | {
        "task": "cola",
        "kind": "classification",
        "family": "distilbert",
        "metrics": ["mcc", "accuracy"],
        "retained": 0.49 / 0.52,
    }


def printed(metrics):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result_table(metrics))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_regression_is_told_by_its_correlations(regression):
    assert summary_line(regression) == (
        "MiniLM on STS-B, 50.0 % of the compressible weights, 76.6 % of all: 98.6 % of the Pearson "
        "correlation kept (0.860 of 0.872); file 1.4× smaller (90.9 MB to 64.9 MB); 1.8× faster at "
        "batch 32 and not clearly faster or slower at batch 1"
    )
    assert verdicts(regression)[0] == (
        "The final model is 0.012 below the dense one in Pearson correlation."
    )
    assert "Final 0.860 0.850 50.0 % 64.9 MB 10.7 ms 157 ms" in printed(regression)
    assert "Stage Pearson Spearman Weights File Batch 1 Batch 32" in printed(regression)


def test_a_regression_that_went_wrong_is_not_called_kept(regression):
    regression["stages"]["final"]["pearson"] = -0.2
    regression["retained"] = -0.2 / 0.872
    assert "Pearson correlation -0.200 (before: 0.872)" in summary_line(regression)
    told = " ".join(cautions(regression))
    assert "predictions do not correlate with the labels" in told
    assert "scored 0.500 before it and -0.200 after" in told


def test_answers_are_told_by_their_f1_and_exact_match(spans):
    assert "95.0 % of the F1 kept (76.0 % of 80.0 %)" in summary_line(spans)
    assert verdicts(spans)[0] == (
        "The final model is 4.0 percentage points below the dense one in F1."
    )
    assert "Final 76.0 % 66.0 % 50.0 % 64.9 MB 10.7 ms 157 ms" in printed(spans)


def test_another_primary_metric_of_classes_stands_beside_the_accuracy(mcc):
    assert "94.2 % of the Matthews correlation kept (0.490 of 0.520)" in summary_line(mcc)
    assert "74 test examples lost and 54 won" in summary_line(mcc)
    assert "Final 0.490 80.1 % 50.0 % 64.9 MB 10.7 ms 157 ms" in printed(mcc)
    mcc["stages"]["final"]["accuracy"] = 0.4
    assert "no more accurate than always answering the most common" in " ".join(cautions(mcc))


@pytest.mark.parametrize(
    ("run", "says", "never"),
    [
        (
            "regression",
            [
                *("Final 0.860 0.850 50.0 % 76.6 %", "so the model is usually worse here"),
                *(
                    "Test Pearson correlation",
                    "Validation Pearson correlation",
                    "linear function of",
                ),
            ],
            [
                "95 % interval",
                "most common class",
                "Figures by class",
                "ccuracy",
                "by chance would",
            ],
        ),
        (
            "spans",
            [
                *("F1 is on 1,706 test examples", "Test F1, %", "with and without an answer"),
                *("windows made from the contexts of the training questions", "words of an answer"),
            ],
            ["95 % interval", "most common class", "Figures by class", "ccuracy"],
        ),
        (
            "mcc",
            [
                *("Stage MCC Accuracy 95 % interval of the accuracy", "Final 0.490 80.1 % 78.2"),
                *(
                    "Figures by class",
                    "Matthews correlation The correlation of",
                    "dividing them at least as",
                ),
            ],
            ["Bars are"],
        ),
    ],
)
def test_the_page_speaks_of_the_metrics_of_the_task(
    request, tmp_path, analysis, log, run, says, never
):
    metrics = request.getfixturevalue(run)
    key = metrics["metrics"][0]
    named = [
        {f"validation_{key}" if k == "validation_accuracy" else k: v for k, v in row.items()}
        for row in log
    ]
    page: Page = page_of(lay_out(tmp_path, metrics, analysis, named))
    for words in says:
        assert words in page.text, words
    for words in never:
        assert words not in page.text, words


@pytest.mark.parametrize(
    ("run", "pipeline", "hub", "says"),
    [
        (
            "regression",
            "text-classification",
            {"pearsonr": 0.86, "spearmanr": 0.85},
            [
                *("A RoBERTa-style text regression model", "print(value)"),
                *("| stage | Pearson correlation | Spearman correlation | compressible weights |",),
                *("Pearson correlation is from one run", "the validation split"),
            ],
        ),
        (
            "spans",
            "question-answering",
            {"f1": 0.76, "exact_match": 0.66},
            [
                *(
                    "A BERT-style extractive question answering model",
                    "AutoModelForQuestionAnswering",
                ),
                *("print(answer, score)", "the validation split, as the answers"),
            ],
        ),
        (
            "mcc",
            "text-classification",
            {"matthews_correlation": 0.49, "accuracy": 1367 / 1706},
            ["A DistilBERT-style text classifier", "| 95 % interval of the accuracy |"],
        ),
    ],
)
def test_the_card_speaks_of_the_metrics_of_the_task(request, run, pipeline, hub, says):
    metrics = request.getfixturevalue(run)
    _, front, body = model_card(metrics).split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["pipeline_tag"] == pipeline
    assert values["metrics"] == list(hub)
    (result,) = values["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == pytest.approx(hub)
    for words in says:
        assert words in body, words
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert ("95 % interval" in body) == (run == "mcc")


def test_a_stage_of_spans_has_a_card_of_its_own_kind():
    known = {"model": "minilm", "task": "squad", "stage": "dense", "kind": "span"}
    card = model_card(known | {"family": "roberta"} | told("f1", task="squad"))
    assert "An ordinary RoBERTa checkpoint" in card
    assert "--data FILE.json" in card


def test_one_file_of_questions_has_no_public_split(spans):
    spans["settings"]["data"] = "mine/questions.json"
    card = model_card(spans)
    assert "split off by a hash of the text" in card
    assert "split: validation" not in card


def test_validation_of_any_metric_is_read_and_compared(regression, tmp_path):
    rows = [
        {"stage": "tune", "step": 3, "loss": 1.0},
        {"stage": "tune", "step": 4, "validation_pearson": 0.6},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = read_log(path)
    assert log == {"tune": Phase([(3, 1.0)], [(4, 0.6)], [], [])}
    assert validation_and_test(regression, log) == (
        "Validation Pearson correlation ends at 0.600, test Pearson correlation at 0.860. The "
        "two are measured on different texts, 853 and 1,706 of them; on other texts, either "
        "could differ by a little."
    )
