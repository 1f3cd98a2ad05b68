import re

import numpy as np
import pytest

from lpaf_jax.report import plots


@pytest.mark.parametrize("count", [1, 2, 19, 20, 97])
def test_smoothing_is_the_mean_over_the_window_cut_at_the_ends(count):
    values = np.random.default_rng(2).standard_normal(count)
    half = count // 20
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(count)]
    np.testing.assert_allclose(plots.smooth(values), expected, rtol=1e-12)


def points(svg):
    """Centres of the markers, in page coordinates with y upward."""
    found = re.findall(r'<use xlink:href="#[\w-]+" x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', svg)
    return {style: (float(x), -float(y)) for x, y, style in found}


def test_accuracy_against_size_puts_each_stage_where_it_belongs(metrics):
    svg = plots.accuracy_against_size(metrics)
    at = {
        stage: next(p for style, p in points(svg).items() if f"fill: {colour}" in style)
        for stage, colour in plots._STAGE_COLOURS.items()
    }
    assert at["final"][0] < at["dense"][0]
    assert abs(at["final"][0] - at["factorized"][0]) < 0.05 * (at["dense"][0] - at["final"][0])
    heights = [at[key][1] for key in ("dense", "pruned", "final", "factorized")]
    assert heights == sorted(heights, reverse=True)
    ratio = (at["dense"][1] - at["final"][1]) / (at["dense"][1] - at["factorized"][1])
    assert ratio == pytest.approx((1387 - 1367) / (1387 - 1294), rel=1e-3)


def test_the_most_common_class_is_drawn_only_where_it_is_in_sight(metrics, stage_of):
    assert "always the most common class" not in plots.accuracy_against_size(metrics)
    metrics["stages"]["factorized"] = stage_of(870)
    assert "always the most common class" in plots.accuracy_against_size(metrics)


def test_labels_of_equally_accurate_stages_do_not_cover_each_other(metrics, stage_of, labels):
    metrics["stages"]["factorized"] = metrics["stages"]["final"] = stage_of(1300)
    at = labels(plots.accuracy_against_size(metrics))
    assert at["Factorized 76.2 %"][1] - at["Final 76.2 %"][1] > 50


def test_the_curve_names_the_accuracy_of_the_weights_that_are_kept(whole_page, log):
    scores = [row["validation_accuracy"] for row in log if "validation_accuracy" in row]
    assert scores[-1] < max(scores)
    curves = whole_page.split("Training curves of")[1].split("</svg>")[0]
    assert curves.count(f">{100 * scores[-1]:.1f}<") == 3
    assert f">{100 * max(scores):.1f}<" not in curves
