"""The comparison of pruning methods, on matrices where the figures are known."""

import base64
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.factorization.analysis import analyse_pruning

SIDE = 9  # 81 entries: no multiple of eight
PATHS = [f"encoder.layer.{i}.attention.self.query.kernel" for i in range(4)]
Arrays = dict[str, np.ndarray]


def analyse(dense: Arrays, masks: Arrays) -> dict[str, Any]:
    weights = {path: jnp.asarray(w, jnp.float32) for path, w in dense.items()}
    kept = {path: jnp.asarray(m) for path, m in masks.items()}
    return analyse_pruning(weights, {p: weights[p] * kept[p] for p in weights}, kept)


@pytest.fixture(scope="module")
def dense() -> Arrays:
    """Three square matrices, the second of rank 2, and one that is not square."""
    rng = np.random.default_rng(0)
    shapes = [(SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE), (SIDE, 4)]
    weights = {path: rng.normal(size=shape) for path, shape in zip(PATHS, shapes, strict=True)}
    weights[PATHS[1]] = rng.normal(size=(SIDE, 2)) @ rng.normal(size=(2, SIDE))
    return weights


@pytest.fixture(scope="module")
def masks(dense: Arrays) -> Arrays:
    """Empty rows in the first, empty columns in the second, all kept, and single entries."""
    kept = {path: np.ones(w.shape, bool) for path, w in dense.items()}
    kept[PATHS[0]][:6] = False
    kept[PATHS[1]][:, 3:] = False
    kept[PATHS[3]][:] = False
    kept[PATHS[3]][2, 1] = True
    return kept


@pytest.fixture(scope="module")
def analysis(dense: Arrays, masks: Arrays) -> dict[str, Any]:
    return analyse(dense, masks)


def magnitude_masks(dense: Arrays, count: int) -> Arrays:
    flat = np.abs(np.concatenate([w.astype(np.float32).ravel() for w in dense.values()]))
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:count]] = True
    cuts = np.cumsum([w.size for w in dense.values()])[:-1]
    parts = zip(dense.items(), np.split(mask, cuts), strict=True)
    return {path: part.reshape(w.shape) for (path, w), part in parts}


def test_planted_figures(analysis: dict[str, Any], masks: Arrays) -> None:
    rows = {row["name"]: row for row in analysis["matrices"]}
    first, second, third, fourth = (rows[path.removesuffix(".kernel")] for path in PATHS)
    assert first["shape"] == [SIDE, SIDE]
    assert first["pruned"]["kept"] == pytest.approx(3 / 9)
    assert first["pruned"]["empty_rows"] == pytest.approx(6 / 9)
    assert first["pruned"]["empty_columns"] == 0
    assert first["pruned"]["effective_rank"] <= 3 + 1e-3  # three rows are left
    assert second["dense"]["effective_rank"] <= 2 + 1e-2
    assert second["dense"]["energy_rank"] <= 2
    assert second["pruned"]["empty_columns"] == pytest.approx(6 / 9)
    assert third["pruned"]["kept"] == 1
    assert third["dense"].items() <= third["pruned"].items()
    assert fourth["pruned"]["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert fourth["pruned"]["empty_rows"] == pytest.approx(8 / 9)
    total, kept = sum(m.size for m in masks.values()), sum(m.sum() for m in masks.values())
    assert analysis["sparsity"] == pytest.approx(1 - kept / total)


def test_magnitude_takes_the_largest_of_all_matrices(
    analysis: dict[str, Any], dense: Arrays, masks: Arrays
) -> None:
    expected = magnitude_masks(dense, sum(int(m.sum()) for m in masks.values()))
    for row, (path, mask) in zip(analysis["matrices"], expected.items(), strict=True):
        found = row["magnitude"]
        assert found["kept"] == pytest.approx(mask.mean())
        assert found["empty_rows"] == pytest.approx((~mask.any(1)).mean())
        s = np.linalg.svd(dense[path] * mask, compute_uv=False)
        p = s[s > 1e-9] / s.sum()
        assert found["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)
        energy = np.cumsum(s**2) / (s**2).sum()
        assert found["energy_rank"] == 1 + (energy < 0.9).sum()


def test_magnitude_keeps_as_many_where_all_are_equal(masks: Arrays) -> None:
    rng = np.random.default_rng(1)
    dense = {path: rng.choice([-1.0, 1.0], m.shape) for path, m in masks.items()}
    found = analyse(dense, masks)
    for version in ("pruned", "magnitude"):
        kept = sum(np.prod(row["shape"]) * row[version]["kept"] for row in found["matrices"])
        assert kept == pytest.approx(sum(m.sum() for m in masks.values()))


@pytest.mark.parametrize("share", [0, 1])
def test_nothing_and_everything_kept(share: int, dense: Arrays) -> None:
    masks = {path: np.full(w.shape, bool(share)) for path, w in dense.items()}
    found = analyse(dense, masks)
    assert found["sparsity"] == 1 - share
    json.dumps(found, allow_nan=False)
    for row in found["matrices"]:
        assert row["magnitude"] == row["pruned"]
        assert row["magnitude"]["kept"] == share
        if not share:
            assert row["magnitude"]["effective_rank"] == 0


def _by_drop(dense: Arrays, masks: Arrays) -> list[int]:
    """Positions of the matrices, the largest relative drop of the effective rank first."""

    def rank(matrix: np.ndarray) -> float:
        p = np.linalg.svd(matrix, compute_uv=False)
        p = p[p > 1e-9] / p.sum()
        return float(np.exp(-(p * np.log(p)).sum()))

    left = [rank(dense[path] * masks[path]) / rank(dense[path]) for path in PATHS]
    return sorted(range(len(PATHS)), key=lambda i: left[i])


def test_what_is_shown_lost_most_middle_and_least(
    analysis: dict[str, Any], dense: Arrays, masks: Arrays
) -> None:
    order = _by_drop(dense, masks)
    assert order[-1] == 2  # nothing of it is removed
    shown = [PATHS[order[i]].removesuffix(".kernel") for i in (0, 2, 3)]
    assert [spectrum["name"] for spectrum in analysis["spectra"]] == shown


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_matrices_are_shown_once(count: int, dense: Arrays, masks: Arrays) -> None:
    chosen = PATHS[:count]
    found = analyse({p: dense[p] for p in chosen}, {p: masks[p] for p in chosen})
    names = [spectrum["name"] for spectrum in found["spectra"]]
    assert len(names) == len(set(names)) == min(count, 3)


def test_patterns_are_the_masks(analysis: dict[str, Any], dense: Arrays, masks: Arrays) -> None:
    magnitude = magnitude_masks(dense, sum(int(m.sum()) for m in masks.values()))
    # Square matrices only: of rank 9 to 3 at most, of rank 2 before and after, as it was.
    assert [p["name"] for p in analysis["patterns"]] == [
        PATHS[i].removesuffix(".kernel") for i in _by_drop(dense, masks) if i != 3
    ]
    for pattern in analysis["patterns"]:
        path = pattern["name"] + ".kernel"
        assert pattern["shape"] == [SIDE, SIDE]
        for version, expected in (("pruned", masks), ("magnitude", magnitude)):
            bits = np.unpackbits(np.frombuffer(base64.b64decode(pattern[version]), np.uint8))
            unpacked = bits[: SIDE * SIDE].reshape(SIDE, SIDE).astype(bool)
            np.testing.assert_array_equal(unpacked, expected[path])


def test_spectra_are_relative_to_the_largest(
    analysis: dict[str, Any], dense: Arrays, masks: Arrays
) -> None:
    assert len(analysis["spectra"]) == 3
    for spectrum in analysis["spectra"]:
        path = spectrum["name"] + ".kernel"
        for version, matrix in (("dense", dense[path]), ("pruned", dense[path] * masks[path])):
            s = np.linalg.svd(matrix, compute_uv=False)
            np.testing.assert_allclose(spectrum[version], s / s[0], rtol=1e-3, atol=1e-6)


def test_means_are_of_all_matrices(analysis: dict[str, Any]) -> None:
    ranks, masked = {"effective_rank", "energy_rank"}, {"empty_rows", "empty_columns"}
    assert {version: set(mean) for version, mean in analysis["mean"].items()} == {
        "dense": ranks,
        "pruned": ranks | masked,
        "magnitude": ranks | masked,
    }
    for version, mean in analysis["mean"].items():
        for key, value in mean.items():
            every = [row[version][key] for row in analysis["matrices"]]
            assert value == pytest.approx(np.mean(every))


@pytest.mark.parametrize("power", [-120, -64, 60])
def test_figures_do_not_hang_on_the_scale(dense: Arrays, masks: Arrays, power: int) -> None:
    scaled = analyse({path: np.ldexp(w, power) for path, w in dense.items()}, masks)
    one = analyse(dense, masks)
    for found, expected in zip(scaled["spectra"], one["spectra"], strict=True):
        for kind in ("dense", "pruned", "magnitude"):
            assert found[kind] == pytest.approx(expected[kind], rel=1e-3, abs=1e-6)
    for kind, figures in one["mean"].items():
        assert scaled["mean"][kind] == pytest.approx(figures, rel=1e-4)
