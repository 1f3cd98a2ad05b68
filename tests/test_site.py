"""What the site says was measured of a recipe."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

MADE = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "site_measured.py"))
figures, measured = MADE["figures"], MADE["measured"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def row(recipe: str, params: float, final: float | None, **changes: Any) -> dict[str, Any]:
        numbers = {"params": params, "dense": 0.8, "final": final}
        return {"recipe": recipe, "metric": "accuracy"} | numbers | changes

    settings = {"model": "minilm", "task": "rotten_tomatoes"}
    compared = {
        "settings": settings,
        "recipes": {"drone": {"summary": "Minimise."}, "svd": {"summary": ""}},
        "rows": [
            row("drone", 0.25, 0.6),
            row("drone", 0.25, 0.7),
            row("drone", 0.1, None),
            row("svd", 0.25, 0.1),
            row("drone", 0.25, 0.4, command="by itself"),
        ],
        "command": "lpaf compare",
        "commit": "123456789",
    }
    command = "lpaf compress smollm2 --calibration imdb --held-out imdb --recipe drone --params 0.6"
    perplexity = {"dense": 48.94, "final": 78.1}
    decoders = {"rows": [{"command": command, "perplexity": perplexity}], "commit": "abcdef123"}
    run = settings | {
        "recipe": "lpaf",
        "stages": {"dense": {"pearson": 0.8}, "final": {"pearson": 0.7}},
        "metrics": ["pearson"],
        "settings": {"params": 0.16},
        "command": "make run",
        "commit": "f17b7b3",
    }
    others = {"rows": {"a": 1}, "command": "python benchmarks/train.py"}
    searched = {"cells": [{"dimension": 1000, "score": 0.5}], "full": 0.74}
    files = {"a": compared, "b": decoders, "c": run, "d": others, "e": searched}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_figures_are_read_from_each_kind_of_result(folder):
    found = figures(folder)
    _, _, *items = measured("drone", found).splitlines()
    assert items == [
        "- MiniLM on Rotten Tomatoes, accuracy, means of 2 seeds: 80.0\u00a0% before; "
        "at 25\u00a0% **65.0\u00a0%** (81.2\u00a0% kept). `lpaf compare`, commit 1234567, `a.json`",
        "- MiniLM on Rotten Tomatoes, accuracy: 80.0\u00a0% before; "
        "at 25\u00a0% **40.0\u00a0%** (50.0\u00a0% kept). `by itself`, commit 1234567, `a.json`",
        "- SmolLM2-135M-Instruct on IMDb, perplexity: 48.9 before; at 60\u00a0% **78.1**. "
        "`lpaf compress smollm2 --calibration imdb --held-out imdb --recipe drone --params 0.6`, "
        "commit abcdef1, `b.json`",
    ]
    assert "0.800 before; at 16\u00a0% **0.700** (87.5\u00a0% kept)" in measured("lpaf", found)
    # A benchmark's own recipe may bear the name of another that is registered.
    assert measured("svd", found) == ""


def test_the_committed_results_are_understood():
    told = {(figure.recipe, figure.file) for figure in figures()}
    for known in (
        ("lpaf-plus", "lpaf_plus.json"),
        ("lpaf-plus", "quick.json"),
        ("lpaf", "paper_quarter.json"),
        ("lpaf-without-step-3", "lpaf_grid_seed1.json"),
        ("kfac-svd", "recipes_quick.json"),
        ("channels", "decoder_channels.json"),
    ):
        assert known in told
