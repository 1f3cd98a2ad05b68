"""The command that the page of a run shows makes the same run."""

import shlex
from typing import Any

import pytest

from lpaf_jax.cli import app
from lpaf_jax.report.sections import command
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.settings import Settings, as_json, make_settings


@pytest.mark.parametrize(
    "chosen",
    [
        {"task": "a file.csv", "text_column": "the text", "regression": True, "params": 0.25},
        {"task": "sst2", "recipe": "lpaf", "preset": "quick", "kept": 0.4, "rank": 8},
        {"task": "sst2", "recipe": "lora-svd", "reuse": ("a", "b c"), "tune_epochs": 3.0},
        {"calibration": "a.txt", "recipe": "drone", "tune_epochs": 1.0, "lora": 4, "quiet": True},
        {"calibration": "a.txt", "params": 0.8, "embeddings": 0.5},
    ],
    ids=["file", "task", "lists", "text", "channels"],
)
def test_it_makes_the_same_run(monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any]) -> None:
    made = as_json(make_settings("minilm", out="runs/a b", **chosen))
    asked: list[Settings] = []

    class Enough(Exception):
        pass

    def run(settings: Settings) -> None:
        asked.append(settings)
        raise Enough

    monkeypatch.setattr(pipeline, "run", run)
    with pytest.raises(Enough):
        app.main(shlex.split(command(made))[1:])
    assert as_json(asked[0]) == made
