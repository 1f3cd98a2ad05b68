"""Synthetic comparisons: the figures below were made up for these tests and measure nothing."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data.metrics import wilson_interval
from lpaf_jax.report.compare import print_comparison, render, write_comparison
from lpaf_jax.report.compare_facts import gather, holm
from lpaf_jax.report.compare_plots import figure_against_size
from lpaf_jax.report.looks import looks
from tests.report.conftest import synthetic_metrics
from tests.report.test_html import NASTY, Page

RECIPES = {"lpaf": 30, "svd-ft": 0, "fwsvd": 12, "lpaf-without-step-1": -14}
N = 1066


def row(recipe: str, params: float, seed: int) -> dict[str, Any]:
    right = 860 + RECIPES[recipe] - round(120 * (0.5 - params)) + 5 * seed
    return {
        "recipe": recipe,
        "params": params,
        "seed": seed,
        "metric": "accuracy",
        "dense": 0.84,
        "before_tuning": 0.62,
        "final": right / N,
        "validation": right / N - 0.01,
        "divergence": 0.0123,
        "retained": right / N / 0.84,
        "interval": list(wilson_interval(right, N)),
        "encoder_params_ratio": params * 0.98,
        "total_params_ratio": 0.52 + 0.48 * params,
        "bytes": 9e7 * (0.52 + 0.48 * params),
        "bytes_dense": 90_900_000,
        "latency": {"batch": 32, "final": 80.0 + 100 * params, "dense": 171.0},
        "memory": 2_100_000_000,
        "seconds": 400.0 + RECIPES[recipe],
        "seconds_of": {"dense": 200.0, "factorized": 20.0, "final": 180.0 + RECIPES[recipe]},
        "shared": ["dense"],
    }


def synthetic(**changes: Any) -> dict[str, Any]:
    rows = [row(r, p, s) for s in (0, 1) for p in (0.5, 0.25, 0.16) for r in RECIPES]
    tests = [
        {key: each[key] for key in ("recipe", "params", "seed")}
        | {"baseline_only": 30, "recipe_only": 62 if each["recipe"] == "lpaf" else 41}
        | {"p": 0.0012 if each["recipe"] == "lpaf" else 0.23}
        for each in rows
        if each["recipe"] != "svd-ft"
    ]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_adjusted"] = p
    return {
        "settings": {"model": "minilm", "task": "rotten_tomatoes", "data": None, "batch": 32},
        "recipes": {
            name: {
                "summary": f"Minimise ‖W − AB‖ by {name}. Somebody, 2024.",
                "stages": ["dense", "factorized", "tuned"],
            }
            for name in RECIPES
        },
        "baseline": "svd-ft",
        "command": "lpaf compare minilm --task rotten_tomatoes --recipes lpaf svd-ft",
        "model": "minilm",
        "task": "rotten_tomatoes",
        "kind": "classification",
        "metric": "accuracy",
        "test": N,
        "rows": rows,
        "paired": tests,
        "pooled": [
            {"recipe": "lpaf", "params": 0.5, "against": "dense"}
            | {"seeds": 2, "points": -0.75, "p": 0.2}
        ],
        "failed": [],
        "missing": 0,
        "versions": {"python": "3.12.0", "jax": "0.8.0"},
        "finished": "2026-11-28T10:00:00+00:00",
    } | changes


def perplexities() -> dict[str, Any]:
    """A decoder by a text alone: less is better, nothing to pair, nothing timed."""
    rows = []
    for recipe, factor in {"drone": 1.2, "svd": 40.0}.items():
        for params in (0.8, 0.6):
            value = 24.1 * factor / params if (recipe, params) != ("svd", 0.6) else None
            rows.append(
                row("lpaf", params, 0)
                | {"recipe": recipe, "metric": "perplexity", "dense": 24.1, "final": value}
                | {"before_tuning": value, "retained": None, "interval": None, "latency": None}
            )
    told = {name: {"summary": "", "stages": ["factorized"]} for name in ("drone", "svd")}
    settings = {"calibration": "some/text.txt", "held_out": "other.txt"}
    return synthetic(
        rows=rows,
        recipes=told,
        paired=[],
        pooled=[],
        metric="perplexity",
        kind="language",
        task=None,
        test=None,
        settings=settings,
        baseline="drone",
    )


def printed(found: dict[str, Any], width: int = 100) -> str:
    file = io.StringIO()
    print_comparison(found, Console(file=file, width=width, color_system=None, markup=False))
    return file.getvalue()


def test_the_page_says_what_came_out() -> None:
    page = Page(render(synthetic()))
    assert "With 50 % of the compressible weights lpaf is best, with accuracy 83.7 %." in page.text
    assert "4 methods to compress MiniLM on Rotten Tomatoes, in 24 runs." in page.text
    assert "Minimise ‖W − AB‖ by fwsvd. Somebody, 2024." in page.text
    parts = ("Results", "By size", "Beyond chance?", "Run by run against svd-ft", "The methods")
    for name in (*parts, "Cost of each method", "Validation", "Divergence", "0.0123", "−0.75"):
        assert name in page.text
    assert "One seed" not in page.text


def test_nothing_is_loaded_from_elsewhere_and_names_are_text() -> None:
    found = json.loads(json.dumps(synthetic(model=NASTY)).replace("fwsvd", "f<b>$x$"))
    page = Page(render(found))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert not [v for _, k, v in page.attributes if k in ("src", "href") and not v.startswith("#")]


def test_the_same_file_gives_the_same_page() -> None:
    assert render(synthetic()) == render(synthetic())


def test_every_picture_is_drawn_for_both_widths() -> None:
    text = render(synthetic())
    assert text.count("<svg") == 2


def test_perplexity_less_is_better_and_may_be_infinite() -> None:
    found = perplexities()
    page = Page(render(found))
    assert "drone is best, with perplexity 36.1" in page.text
    assert "not finite" in page.text
    assert "text.txt" in page.text
    assert "Against drone" not in page.text
    assert "Down and to the left is better" in page.text
    assert "not finite" in printed(found)


def test_what_failed_is_told() -> None:
    failed = [{"recipe": "fwsvd", "params": 0.5, "seed": 1, "why": "no room"}]
    found = synthetic(failed=failed, missing=2)
    page = Page(render(found))
    assert "fwsvd at 50 %, seed 1, failed: no room" in page.text
    assert "1 run is not finished yet" in page.text
    assert "fwsvd at 50 %, seed 1, failed: no room" in printed(found)


def test_before_the_first_cell(tmp_path: Path) -> None:
    found = synthetic(rows=[], paired=[], missing=24)
    assert "No cell is finished yet" in Page(render(found)).text
    assert printed(found) == ""
    with pytest.raises(LpafError, match="does not exist"):
        write_comparison(tmp_path)
    (tmp_path / "compare.json").write_text("[]")
    with pytest.raises(LpafError, match="is not a comparison"):
        write_comparison(tmp_path)


def test_the_table_fits_a_terminal() -> None:
    text = printed(synthetic(), 80)
    assert "…" not in text
    assert "6 of 18 runs differ from svd-ft by more than chance" in " ".join(text.split())


def test_probabilities_adjusted_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def run_of(right: np.ndarray, seconds: dict[str, float]) -> tuple[Any, Any]:
    metrics = synthetic_metrics()
    metrics["stages"]["final"] |= {"n": right.size}
    packed = base64.b64encode(np.packbits(right).tobytes()).decode()
    metrics["right"] = {"dense": packed, "final": packed}
    metrics["seconds"] = {**seconds, "total": sum(seconds.values())}
    told = {"dense": (False, "finetune"), "pruned": (False, "prune")}
    told |= {"factorized": (True, None), "final": (True, "tune")}
    metrics["described"] = {
        n: dict(zip(("shrinks", "logs"), t, strict=True)) for n, t in told.items()
    }
    steps = {name: [name] for name in metrics["stages"]}
    return metrics, {"steps": steps, "fingerprint": {}}


def test_rows_of_runs() -> None:
    one = np.arange(100) % 2 == 0
    other = one | (np.arange(100) < 21)
    alone = {"dense": 10.0, "pruned": 5.0, "factorized": 1.0, "final": 4.0}
    runs = {
        ("svd-ft", 0.5, 0): run_of(one, alone),
        ("lpaf", 0.5, 0): run_of(other, {"final": 6.0}),
        ("lpaf", 0.5, 1): run_of(other, {"final": 6.0}),
    }
    found = gather(runs, "svd-ft")
    assert [row["seconds"] for row in found["rows"]] == [20.0, 22.0, None]
    assert found["rows"][0]["before_tuning"] == pytest.approx(1294 / 1706)
    assert found["rows"][1]["shared"] == ["dense", "pruned", "factorized"]
    [test] = found["paired"]  # seed 1 has nothing to be paired with
    assert (test["recipe_only"], test["baseline_only"]) == (10, 0)
    assert test["p"] == test["p_adjusted"] == pytest.approx(2 / 2**10)
    pooled = {(t["recipe"], t["against"]): t for t in found["pooled"]}
    assert list(pooled) == [("svd-ft", "dense"), ("lpaf", "dense"), ("lpaf", "svd-ft")]
    against = pooled["lpaf", "svd-ft"]
    assert (against["seeds"], against["points"]) == (1, pytest.approx(10))
    assert against["p"] == pytest.approx(test["p"])
    assert pooled["lpaf", "dense"]["seeds"] == 2


def test_a_method_stands_aside_only_of_others_of_its_size(labels):
    """Else one of many methods would seem to be of a size that nobody asked for."""
    rows = [row("lpaf", 0.5, 0), *(row(r, 0.25, 0) for r in RECIPES)]
    found = synthetic(rows=[each | {"encoder_params_ratio": each["params"]} for each in rows])
    svg = figure_against_size(found)
    ticks = {int(t[:-2]): x for t, (x, _) in labels(svg).items() if re.fullmatch(r"\d+ %", t)}
    (low, left), *_, (high, right) = sorted(ticks.items())
    colour = looks(["lpaf"])["lpaf"].color
    marks = re.findall(rf'<use [^>]* x="([\d.]+)"[^>]*fill: {colour}', svg)
    sizes = sorted(low + (float(x) - left) * (high - low) / (right - left) for x in marks)
    assert sizes[-1] == pytest.approx(50, abs=0.1)
    assert 0.1 < abs(sizes[0] - 25) < 2.5


def in_nf4(found: dict[str, Any], dense: tuple[float, float], share: float) -> dict[str, Any]:
    """With every final model a tenth worse in `share` of its bytes."""
    score, size = dense
    rows = [
        row
        | {
            "nf4": {
                "dense": {"score": score, "bytes": size},
                "final": {"score": 1.1 * row["final"], "bytes": share * row["bytes"]},
            }
        }
        for row in found["rows"]
        if row["final"] is not None
    ]
    return found | {"rows": rows}


@pytest.mark.parametrize(
    ("dense", "said"),
    [
        ((20.0, 1e6), "Every compressed model is larger than that and no better."),
        ((60.0, 1e6), "1 of the 3 compressed models is larger and no better."),
        ((60.0, 1e9), "No compressed model is both larger and worse."),
    ],
)
def test_four_bits_alone_are_held_against_all(dense: tuple[float, float], said: str) -> None:
    found = in_nf4(perplexities(), dense, 0.5)
    page = Page(render(found))
    assert said in page.text
    assert said in printed(found)
    shown = f"the dense model has perplexity {dense[0]:.1f} in {dense[1] / 1e6:,.1f} MB"
    assert shown.replace("1,000.0 MB", "1.0 GB") in page.text


def test_of_models_in_four_bits_the_best_smaller_one_is_named() -> None:
    found = in_nf4(perplexities(), (30.0, 40e6), 0.5)
    sizes = {row["recipe"]: 0.5 * row["bytes"] for row in found["rows"] if row["params"] == 0.6}
    assert sizes["drone"] < 40e6  # at 80 % it is larger, and better
    said = "the best is drone at 60 %: perplexity 53.0 in 36.4 MB."
    assert said in Page(render(found)).text
    assert "Four bits" not in Page(render(perplexities())).text
