import re

import pytest
import yaml

from lpaf_jax.report import model_card
from tests.report.conftest import told


def split(card):
    """Front matter as YAML sees it, and the text below."""
    opening, front, body = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(front), body


def test_front_matter_says_what_a_hub_wants_to_know(metrics):
    front, _ = split(model_card(metrics))
    assert front["pipeline_tag"] == "text-classification"
    assert front["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert front["license"] == "apache-2.0"
    assert front["metrics"] == ["accuracy"]
    assert {"lpaf", "low-rank"} <= set(front["tags"])
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert result["dataset"]["type"] == front["datasets"][0]
    assert result["metrics"] == [{"type": "accuracy", "value": pytest.approx(1367 / 1706)}]


def test_body_holds_figures_use_and_limits(metrics):
    _, body = split(model_card(metrics))
    row = "| final | 80.1 % | 78.2 to 82.0 % | 50.0 % | 76.6 % | 64.9 MB | 10.7 ms | 157 ms |"
    assert row in body
    assert "98.6 % of the accuracy kept (80.1 % of 81.3 %)" in body
    assert "k × n matrix, k = 128, chosen to preserve the weights" in body
    assert "Then all parameters were tuned. Recipe: lpaf." in body
    assert "lpaf predict RUN" in body
    assert 'load_predictor(Path("RUN"))' in body
    assert 'pipeline("text-classification", model="FOLDER", trust_remote_code=True)' in body
    assert 'classify("a text of your own")' in body
    assert "one run (seed 0) on 1,706 examples of Rotten Tomatoes, split off by a hash" in body
    assert "1.2 percentage points below" in body
    assert "it may be chance" in body


@pytest.mark.parametrize(
    ("task", "tested", "words"),
    [
        (
            "mnli",
            {
                "type": "nyu-mll/glue",
                "name": "MNLI",
                "config": "mnli",
                "split": "validation_matched",
            },
            r"examples of MNLI, the validation\_matched",
        ),
        (
            "mnli_mismatched",
            {
                "type": "nyu-mll/glue",
                "name": "MNLI, mismatched",
                "config": "mnli",  # the hub has no other
                "split": "validation_mismatched",
            },
            r"the validation\_mismatched",
        ),
        (
            "imdb",
            {"type": "stanfordnlp/imdb", "name": "IMDb, own split"},
            "examples of IMDb, split off by a hash of the text",
        ),
    ],
)
def test_the_card_names_the_split_that_was_the_test(metrics, task, tested, words):
    metrics |= {"task": task, "settings": {"task": task}}
    front, body = split(model_card(metrics))
    assert front["model-index"][0]["results"][0]["dataset"] == tested
    assert words in body


def test_a_file_named_like_a_public_task_is_not_taken_for_it(metrics):
    metrics |= {"task": "sst2", "settings": {"task": "reviews/sst2.csv"}}
    front, body = split(model_card(metrics))
    assert "datasets" not in front
    assert "model-index" not in front
    assert "split off by a hash of the text" in body


def test_every_table_row_has_as_many_cells_as_the_head(metrics):
    lines = [line for line in model_card(metrics).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("dense", "before compression: the starting point"),
        ("pruned", "Zeros are stored, so the file is not smaller"),
        ("factorized", "# MiniLM on IMDb, factorized, not yet tuned"),
    ],
)
def test_the_card_of_a_stage_speaks_of_that_stage(stage, words):
    known = {"model": "minilm", "task": "imdb", "stage": stage}
    _, body = split(model_card(known | told(task="imdb")))
    assert words in body
    assert f'load_predictor(Path("RUN"), stage="{stage}")' in body
    assert ("ordinary BERT checkpoint" in body) == (stage != "factorized")
    assert ("trust_remote_code=True" in body) == (stage == "factorized")
    assert "## Figures" not in body
    assert "Accuracy" not in body
    assert "Timings" not in body


def test_a_model_of_pairs_is_shown_two_texts(metrics):
    shown = r'predictor.predict(["one text\tand another"])'
    in_torch = 'classify({"text": "one text", "text_pair": "and another"})'
    for code in (shown, in_torch):
        assert code not in model_card(metrics)
        assert code in model_card(metrics | {"settings": {"task": "mrpc"}})
        own = {"settings": {"task": "a.csv", "pair_column": "second"}}
        assert code in model_card(metrics | own)


def test_names_from_outside_break_neither_yaml_nor_markdown(metrics):
    name = 'x: "y"\n---\n<script>[a](b)|`'
    front, body = split(
        model_card(metrics | {"model": name, "task": name, "settings": {"task": name}})
    )
    assert "base_model" not in front
    assert "datasets" not in front
    assert "<script" not in body
    assert not re.search(r"(?<!\\)\]\(", body)
    for line in body.splitlines():
        assert not re.match(r"-{3,}$", line)


def test_only_a_hub_model_is_named_as_base(metrics, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def base(model):
        return split(model_card(metrics | {"model": model}))[0].get("base_model")

    assert base("google/bert_uncased_L-2_H-128_A-2") == "google/bert_uncased_L-2_H-128_A-2"
    assert base("/home/me/secret-client/model") is None
    assert "secret-client" not in model_card(metrics | {"model": "/home/me/secret-client/model"})
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert base("models/tiny") is None


def test_licence_of_an_unknown_base_is_not_guessed(metrics):
    front, _ = split(model_card(metrics | {"model": "org/name"}))
    assert "license" not in front
