import base64
import json
import re

import numpy as np
import pytest

from lpaf_jax.report import plots
from lpaf_jax.report.logs import read_log


def test_masks_come_back_as_they_were_packed():
    mask = np.random.default_rng(0).random((5, 7)) < 0.3
    item = {"shape": [5, 7], "k": base64.b64encode(np.packbits(mask).tobytes()).decode()}
    np.testing.assert_array_equal(plots.unpack(item, "k"), mask)


@pytest.mark.parametrize("shape", [(3, 4), (384, 1536), (1000, 385)])
def test_blocks_are_means_and_stay_small(shape):
    mask = (np.random.default_rng(1).random(shape) < 0.25).astype(np.uint8)
    mask[-1, -1] = 1
    blocks = plots._blocks(mask)
    assert max(blocks.shape) <= 384
    steps = [-(-extent // 384) for extent in shape]
    assert blocks[0, 0] == pytest.approx(mask[: steps[0], : steps[1]].mean())
    last = [(n - 1) * step for n, step in zip(blocks.shape, steps, strict=True)]
    assert blocks[-1, -1] == pytest.approx(mask[last[0] :, last[1] :].mean())


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


@pytest.mark.parametrize(
    ("name", "kind", "short"),
    [
        ("encoder.layer.0.attention.self.query", "query", "layer 1, query"),
        ("encoder.layer.11.attention.output.dense", "attn out", "layer 12, attn out"),
        ("encoder.layer.2.output.dense", "ff out", "layer 3, ff out"),
        ("blocks.3.mlp.up", "mlp.up", "layer 4, mlp.up"),
        ("head", "head", "head"),
    ],
)
def test_names_of_matrices(name, kind, short):
    assert plots.kind(name) == kind
    assert plots.short_name(name) == short


def test_log_of_a_killed_and_resumed_run(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [
        {"stage": "finetune", "step": 10, "loss": 0.9},
        {"stage": "finetune", "step": 20, "loss": 0.8},
        {"stage": "finetune", "step": 10, "loss": 0.7},
        {"stage": "finetune", "step": 20, "loss": float("nan")},
        {"stage": "finetune", "step": 5, "loss": 1.0, "sparsity": None},
        {"stage": "finetune", "step": 20, "validation_accuracy": 0.5},
        {"stage": "empty", "step": 1, "note": "no figure"},
        {"step": 3, "loss": 0.1},
        [1],
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text + '{"stage": "prune", "st')
    log = read_log(path)
    assert list(log) == ["finetune"]
    assert log["finetune"].loss == [(5, 1.0), (10, 0.7), (20, 0.8)]
    assert log["finetune"].validation == [(20, 0.5)]
    assert log["finetune"].sparsity == []


def test_no_log_is_an_empty_log(tmp_path):
    assert read_log(tmp_path / "none.jsonl") == {}


def test_a_spectrum_ends_where_its_values_are_zero():
    full = np.linspace(1, 0.1, 100)
    cut = np.where(np.arange(100) < 40, full, 0)
    item = {"name": "m", "dense": full.tolist(), "first_order": cut.tolist()}
    svg = plots.spectrum(item, 0)

    def right_end(colour):
        path = re.search(rf'<path d="([^"]*)"[^>]*stroke: {colour}; stroke-width: 1.8', svg)
        return max(float(x) for x in re.findall(r"[ML] ([\d.]+) ", path[1]))

    assert right_end(plots.COLOURS["first_order"]) < 0.6 * right_end(plots.COLOURS["dense"])
    assert "magnitude" not in svg
