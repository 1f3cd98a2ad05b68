import base64
import re

import numpy as np
import pytest

from lpaf_jax.report import matrix_names, matrix_plots


def test_masks_come_back_as_they_were_packed():
    mask = np.random.default_rng(0).random((5, 7)) < 0.3
    item = {"shape": [5, 7], "k": base64.b64encode(np.packbits(mask).tobytes()).decode()}
    np.testing.assert_array_equal(matrix_plots.unpack(item, "k"), mask)


@pytest.mark.parametrize("shape", [(3, 4), (384, 1536), (1000, 385)])
def test_blocks_are_means_and_stay_small(shape):
    mask = (np.random.default_rng(1).random(shape) < 0.25).astype(np.uint8)
    mask[-1, -1] = 1
    blocks = matrix_plots._blocks(mask)
    assert max(blocks.shape) <= 384
    steps = [-(-extent // 384) for extent in shape]
    assert blocks[0, 0] == pytest.approx(mask[: steps[0], : steps[1]].mean())
    last = [(n - 1) * step for n, step in zip(blocks.shape, steps, strict=True)]
    assert blocks[-1, -1] == pytest.approx(mask[last[0] :, last[1] :].mean())


def test_matrices_stand_in_the_order_the_model_uses_them():
    names = [
        f"bert.encoder.layer.{layer}.{kind}"
        for layer in (0, 1, 2, 9, 10, 11)
        for kind in ("attention.self.query", "attention.self.key", "attention.output.dense")
    ]
    shuffled = sorted(names)
    assert shuffled != names
    matrices = [{"name": name} for name in shuffled]
    assert [m["name"] for m in sorted(matrices, key=matrix_names.order)] == names


@pytest.mark.parametrize("narrow", [False, True])
def test_labels_of_close_curves_are_moved_apart(analysis, labels, narrow):
    assert matrix_plots.apart({"a": 3.0, "b": 1.0, "c": 1.1}, 0.5) == {"b": 1.0, "c": 1.5, "a": 3.0}
    for matrix in analysis["matrices"]:
        matrix["magnitude"] = matrix["pruned"] = matrix["dense"]
    at = labels(matrix_plots.effective_ranks(analysis["matrices"], narrow))
    heights = sorted(at[label][1] for label in matrix_plots.METHODS.values())
    assert min(np.diff(heights)) > 9  # the height of a letter


@pytest.mark.parametrize(
    ("name", "kind", "short"),
    [
        ("encoder.layer.0.attention.self.query", "query", "layer 0, query"),
        ("encoder.layer.11.attention.output.dense", "attn out", "layer 11, attn out"),
        ("encoder.layer.2.output.dense", "ff out", "layer 2, ff out"),
    ],
)
def test_names_of_matrices(name, kind, short):
    assert matrix_names.kind(name) == kind
    assert matrix_names.short_name(name) == short


def test_a_spectrum_ends_where_its_values_are_zero():
    full = np.linspace(1, 0.1, 100)
    cut = np.where(np.arange(100) < 40, full, 0)
    item = {"name": "encoder.layer.0.output.dense", "dense": full.tolist()}
    item |= {"pruned": cut.tolist(), "magnitude": full.tolist()}
    svg = matrix_plots.spectrum(item, "9 → 4", 0)

    def right_end(colour):
        path = re.search(rf'<path d="([^"]*)"[^>]*stroke: {colour}; stroke-width: 1.8', svg)
        return max(float(x) for x in re.findall(r"[ML] ([\d.]+) ", path[1]))

    assert right_end(matrix_plots.COLOURS["pruned"]) < 0.6 * right_end(
        matrix_plots.COLOURS["dense"]
    )
