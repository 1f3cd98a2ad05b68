import re

import numpy as np
import pytest

from lpaf_jax.report import plots
from lpaf_jax.report.logs import Phase
from lpaf_jax.report.svg import BLUE


@pytest.mark.parametrize("count", [1, 2, 19, 20, 97])
def test_smoothing_is_the_mean_over_the_window_cut_at_the_ends(count):
    values = np.random.default_rng(2).standard_normal(count)
    half = max(count // 20, 2)
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(count)]
    np.testing.assert_allclose(plots.smooth(values), expected, rtol=1e-12)


def points(svg):
    """Centres of the markers, in page coordinates with y upward."""
    found = re.findall(r'<use xlink:href="#[\w-]+" x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', svg)
    return {style: (float(x), -float(y)) for x, y, style in found}


@pytest.mark.parametrize("narrow", [False, True])
def test_accuracy_against_size_puts_each_stage_where_it_belongs(metrics, labels, narrow):
    svg = plots.score_against_size(metrics, narrow)
    at = {
        stage: next(p for style, p in points(svg).items() if f"fill: {colour}" in style)
        for stage, (colour, _) in plots._LOOKS.items()
    }
    ticks = labels(svg)
    for stage, size in (("dense", 100), ("pruned", 100), ("factorized", 50), ("final", 50)):
        assert at[stage][0] == pytest.approx(ticks[f"{size} %"][0], abs=0.1)
    heights = [at[key][1] for key in ("dense", "pruned", "final", "factorized")]
    assert heights == sorted(heights, reverse=True)
    ratio = (at["dense"][1] - at["final"][1]) / (at["dense"][1] - at["factorized"][1])
    assert ratio == pytest.approx((1387 - 1367) / (1387 - 1294), rel=1e-3)


def test_the_most_common_class_is_drawn_only_where_it_is_in_sight(metrics, stage_of):
    assert "always the most common class" not in plots.score_against_size(metrics)
    metrics["stages"]["factorized"] = stage_of(870)
    assert "always the most common class" in plots.score_against_size(metrics)


def test_labels_of_equally_accurate_stages_do_not_cover_each_other(metrics, stage_of, labels):
    metrics["stages"]["factorized"] = metrics["stages"]["final"] = stage_of(1300)
    at = labels(plots.score_against_size(metrics))
    assert abs(at["Factorized 76.2 %"][1] - at["Final 76.2 %"][1]) > 12


def test_no_end_of_a_loss_curve_is_a_single_batch(metrics, log):
    rows = [row for row in log if row["stage"] == "prune" and "loss" in row]
    rows.append(rows[-1] | {"step": rows[-1]["step"] + 2, "loss": 9.0})
    phase = Phase([(row["step"], row["loss"]) for row in rows], [(9, 0.5)], [], [])
    svg = plots.training_curves(metrics, {"prune": phase})
    pale, strong = (
        [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)]
        for path in re.findall(rf'<path d="([^"]*)"[^>]*stroke: {BLUE};', svg)[:2]
    )
    assert len(pale) == len(strong) == len(rows)
    jumps = [max(np.abs(np.diff(curve))) for curve in (pale, strong)]
    assert jumps[1] < 0.3 * jumps[0]


def test_the_curve_names_the_accuracy_of_the_weights_that_are_kept(whole_page, log):
    scores = [row["validation_accuracy"] for row in log if "validation_accuracy" in row]
    assert scores[-1] < max(scores)
    curves = whole_page.split("Training curves of")[1].split("</svg>")[0]
    assert curves.count(f">{100 * scores[-1]:.1f}<") == 3
    assert f">{100 * max(scores):.1f}<" not in curves
