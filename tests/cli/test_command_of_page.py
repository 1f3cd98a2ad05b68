"""The command that the page of a run shows makes the same run."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.cli import app
from lpaf_jax.recipes import Recipe, make_recipe
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.settings import Settings, as_json, command, make_settings

OWN = """name: my-own
stages:
  - FineTune
  - Factorize: {importance: activations, solver: metric}
  - Tune: {tune_epochs: 0.5}
"""


@pytest.mark.parametrize(
    "chosen",
    [
        {"task": "a file.csv", "text_column": "the text", "regression": True, "params": 0.25},
        {"task": "sst2", "recipe": "lpaf", "preset": "quick", "kept": 0.4, "rank": 8},
        {"task": "sst2", "recipe": "lora-svd", "reuse": ("a", "b c"), "tune_epochs": 3.0},
        {"task": "sst2", "recipe": "my own.yaml"},
        {"calibration": "a.txt", "recipe": "drone", "tune_epochs": 1.0, "lora": 4, "quiet": True},
        {"calibration": "a.txt", "params": 0.8, "embeddings": 0.5},
    ],
    ids=["file", "task", "lists", "own", "text", "channels"],
)
def test_it_makes_the_same_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my own.yaml").write_text(OWN)
    made = make_settings("minilm", out="runs/a b", **chosen)
    words = command(made)
    assert words is not None
    asked: list[Settings] = []

    class Enough(Exception):
        pass

    def run(settings: Settings) -> None:
        asked.append(settings)
        raise Enough

    monkeypatch.setattr(pipeline, "run", run)
    with pytest.raises(Enough):
        app.main(shlex.split(words)[1:])
    assert as_json(asked[0]) == as_json(made)


def test_there_is_none_of_a_recipe_made_in_python() -> None:
    recipe = Recipe(*make_recipe("svd-ft").stages, name="never registered")
    assert command(make_settings("minilm", out="out", task="sst2", recipe=recipe)) is None


def test_nothing_is_deleted_by_it() -> None:
    made = make_settings("minilm", out="out", task="sst2", force=True)
    assert "--force" not in str(command(made))
