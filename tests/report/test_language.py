"""What is said of a language model: of its perplexity less is better."""

import json

import pytest

from lpaf_jax.report import cautions, model_card, summary_line
from lpaf_jax.report.logs import Phase
from lpaf_jax.report.measures import MEASURES
from lpaf_jax.report.words import validation_and_test, verdicts
from tests.report.conftest import lay_out, told
from tests.report.test_html import page_of
from tests.report.test_kinds import printed


def told_of(metrics, *values):
    del metrics["paired"]
    stages = [{"perplexity": value, "tokens": 7000, "n": 100} for value in values]
    return metrics | {
        "kind": "language",
        "metrics": ["perplexity"],
        "stages": dict(zip(metrics["stages"], stages, strict=True)),
        "settings": metrics["settings"] | {"task": "texts/story.txt"},
        "data": {"train": 700, "validation": 90, "test": 100, "window": 128, "left_out": 71},
        "retained": None,
        "task": "story",
        "family": "gpt2",
    }


def test_more_perplexity_is_not_called_kept(metrics):
    run = told_of(metrics, 48.8, 49.1, 300.0, 52.07)
    assert "compressible weights, 76.6 % of all: perplexity 48.8 → 52.1 (6.7 % more); file" in (
        summary_line(run)
    )
    assert verdicts(run)[0] == (
        "The perplexity of the final model is higher than the dense one's (6.7 % more); lower is "
        "better."
    )
    assert not any("erplexity" in note or "help" in note for note in cautions(run))
    assert "Stage Perplexity Weights File Batch 1 Batch 32" in printed(run)
    assert "Final 52.1 50.0 % 64.9 MB 10.7 ms 157 ms" in printed(run)


def test_less_perplexity_is_better(metrics):
    run = told_of(metrics, 48.8, 49.1, 300.0, 40.0)
    assert "perplexity 48.8 → 40.0 (18.0 % less)" in summary_line(run)
    assert "lower than the dense one's (18.0 % less); lower is better" in verdicts(run)[0]
    assert MEASURES["perplexity"].better(40.0, 48.8)
    assert MEASURES["accuracy"].better(0.5, 0.4)


@pytest.mark.parametrize(("final", "told"), [(400.0, True), (300.0, True), (299.0, False)])
def test_tuning_that_did_not_help_is_told(metrics, final, told):
    found = cautions(told_of(metrics, 48.8, 49.1, 300.0, final))
    assert any("scored 300.0 before it" in note for note in found) == told


def test_a_perplexity_above_all_numbers_is_said(metrics, tmp_path):
    run = told_of(metrics, 48.8, 49.1, None, None)
    assert "perplexity 48.8 → not finite; file" in summary_line(run)
    assert cautions(run)[0].startswith(
        "The perplexity of the final model is not finite: the model is useless"
    )
    page = page_of(lay_out(tmp_path, run))
    assert "not finite" in page.text


def test_the_page_and_the_card_speak_of_windows(metrics, tmp_path):
    run = told_of(metrics, 48.8, 49.1, 3000.0, 52.1)
    page = page_of(lay_out(tmp_path, run)).text
    assert "Perplexity is on 100 test windows of 128 tokens that were used for nothing" in page
    assert "Down and to the left is better." in page
    assert "the model is usually worse here than after the next stage" in page
    assert "negative log-probability" in page
    card = model_card(run)
    assert json.dumps("text-generation") in card
    assert "A GPT-2-style language model made smaller" in card
    assert "| final | 52.1 | 50.0 % |" in card
    assert 'pipeline("text-generation"' in card
    assert "100 windows of 128 tokens of story, split off by a hash" in card
    assert 'evaluate_file(Path("RUN"), Path("TEXT.txt"))["perplexity"]' in card
    early = model_card(
        {"model": "m", "task": "story", "stage": "dense", "kind": "language"}
        | {"metrics": ["perplexity"], "settings": run["settings"]}
        | told("perplexity", task="story.txt")
    )
    assert 'Path("TEXT.txt"), stage="dense")' in early


def test_validation_and_test_are_compared_by_ratio(metrics):
    run = told_of(metrics, 48.8, 49.1, 300.0, 52.1)

    def log(value):
        return {"tune": Phase(loss=[(1, 4.0)], validation=[(1, value)], sparsity=[], p=[])}

    assert validation_and_test(run, log(54.0)) is None
    assert validation_and_test(run, log(None)) is None
    assert validation_and_test(run, log(60.0)) == (
        "Validation perplexity ends at 60.0, test perplexity at 52.1. The two are measured on "
        "different texts, 90 and 100 windows of 128 tokens; on other texts, either could differ "
        "by a little."
    )
