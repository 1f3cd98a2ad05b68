"""Rank rules against all there is to choose, and their spectra against float64."""

from itertools import product
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.importance import Weighting
from lpaf_jax.models.compressible import is_compressible, is_feed_forward
from lpaf_jax.ranks import RANK_RULES, Channels, RankRule, Ranks, choose_ranks, loss_spectrum

SHAPES = {"a": (6, 6), "b": (6, 9), "c": (12, 6)}
DENSE = sum(m * n for m, n in SHAPES.values())


def spectra(seed: int, shapes: dict[str, tuple[int, int]] = SHAPES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    fall = {path: rng.uniform(0.1, 1.2) for path in shapes}
    return {p: 3 * np.exp(-fall[p] * np.arange(min(s))) for p, s in shapes.items()}


def numbers(ranks: Ranks, shapes: dict[str, tuple[int, int]] = SHAPES) -> int:
    return sum(
        m * n if ranks[p] is None else int(ranks[p] or 0) * (m + n) for p, (m, n) in shapes.items()
    )


def lost(ranks: Ranks, given: dict[str, np.ndarray]) -> float:
    return sum(0.0 if k is None else float((given[p][k:] ** 2).sum()) for p, k in ranks.items())


@pytest.mark.parametrize("rule", [name for name, rule in RANK_RULES.items() if rule.factorizes])
@pytest.mark.parametrize("share", [0.5, 0.65, 0.8, 0.95])
@pytest.mark.parametrize("multiple_of", [1, 2])
def test_the_budget_is_kept(rule: str, share: float, multiple_of: int) -> None:
    names = ("h.0.attn.c_proj", "h.1.mlp.c_fc", "h.1.mlp.c_proj")
    shapes = dict(zip(names, SHAPES.values(), strict=True))
    given = spectra(0, shapes)

    def chosen() -> Ranks:
        return choose_ranks(rule, shapes, params=share, spectra=given, multiple_of=multiple_of)

    # One step for each costs more.
    if rule in ("loss", "measured") and (share, multiple_of) == (0.5, 2):
        with pytest.raises(LpafError, match="cannot keep"):
            chosen()
        return
    ranks = chosen()
    assert list(ranks) == list(shapes)
    assert numbers(ranks, shapes) <= share * DENSE
    for path, k in ranks.items():
        m, n = shapes[path]
        if k is not None:
            assert 1 <= k <= min(m, n)
            if rule != "uniform":
                assert k * (m + n) < m * n
                assert k % multiple_of == 0 or k < multiple_of


@pytest.mark.parametrize("multiple_of", [1, 8])
def test_channels_alone_go_as_many_everywhere(multiple_of: int) -> None:
    channels = {f"h.{i}.down": Channels(40, 30) for i in range(3)}
    total = DENSE + 3 * 40 * 30
    found = choose_ranks(
        "even-channels", SHAPES, params=0.7, channels=channels, multiple_of=multiple_of
    )
    (left,) = {found[path] for path in channels}
    assert all(found[path] is None for path in SHAPES)
    assert left is not None
    assert left % multiple_of == 0
    kept = DENSE + 3 * left * 30
    assert kept <= 0.7 * total < kept + 3 * 30 * multiple_of
    with pytest.raises(LpafError, match="stay dense are already 5.5% of them: give a larger share"):
        choose_ranks("even-channels", {"a": (6, 35)}, params=0.05, channels=channels)
    with pytest.raises(LpafError, match="add --channels"):
        choose_ranks("even-channels", SHAPES, params=0.5)


@pytest.mark.parametrize("least", [0.3, 0.5, 0.8])
def test_no_part_keeps_less_than_the_least(least: float) -> None:
    shapes = {path: (10 * m, 10 * n) for path, (m, n) in SHAPES.items()}
    given = spectra(0, shapes)
    given["a"] *= 1e-3  # of which next to nothing would be kept
    given["f"] = np.linspace(1e-2, 1e-3, 20)
    channels = {"f": Channels(20, 400)}
    free, held = (
        choose_ranks("loss", shapes, params=0.85, spectra=given, channels=channels, least=each)
        for each in (0.0, least)
    )
    for path, (m, n) in shapes.items():
        k = held[path]
        assert k is None or k * (m + n) >= least * m * n
    assert held["f"] is None or held["f"] >= least * 20
    assert free["a"] is not None
    assert free["a"] < 0.3 * 30
    whole = 100 * DENSE + 20 * 400
    channels_kept = 20 if held["f"] is None else held["f"]
    assert numbers({p: held[p] for p in shapes}, shapes) + 400 * channels_kept <= 0.85 * whole


def test_a_least_that_the_share_does_not_pay_for() -> None:
    with pytest.raises(LpafError, match=r"cannot keep 50.00% of the compressible weights"):
        choose_ranks("loss", SHAPES, params=0.5, spectra=spectra(0), least=0.7)
    with pytest.raises(LpafError, match=r"least must lie in \[0, 1\)"):
        choose_ranks("loss", SHAPES, params=0.5, spectra=spectra(0), least=1.0)


def test_one_rank_for_all_is_the_largest_there_is() -> None:
    for share in (0.5, 0.65, 0.8):
        ranks = choose_ranks("uniform", SHAPES, params=share)
        (rank,) = set(ranks.values())
        assert rank is not None
        assert numbers(dict.fromkeys(SHAPES, rank + 1)) > share * DENSE


def test_the_same_share_of_each_matrix() -> None:
    ranks = choose_ranks("share", SHAPES, params=0.6)
    for path, (m, n) in SHAPES.items():
        k = ranks[path]
        assert k is not None
        assert k * (m + n) <= 0.6 * m * n < (k + 1) * (m + n)
    stepped = choose_ranks("share", {"a": (64, 64)}, params=0.6, multiple_of=8)
    assert stepped == {"a": 16}  # of 19


def test_every_second_block_pays_for_all() -> None:
    shapes = {f"h.{i}.{name}": (40, 60) for i in range(4) for name in "ab"}
    ranks = choose_ranks("alternate", shapes, params=0.75)
    assert {path for path, k in ranks.items() if k is not None} == {
        f"h.{i}.{name}" for i in (1, 3) for name in "ab"
    }
    assert set(ranks.values()) == {None, 40 * 60 // (2 * 100)}
    channels = {f"h.{i}.out": Channels(100, 30) for i in range(4)}
    found = choose_ranks("alternate", {}, params=0.75, channels=channels)
    assert list(found.values()) == [None, 50, None, 50]
    with pytest.raises(LpafError, match="the blocks that stay dense are already 50.0%"):
        choose_ranks("alternate", shapes, params=0.5)
    with pytest.raises(LpafError, match="there is only one block"):
        choose_ranks("alternate", {"h.0.a": (40, 60)}, params=0.75)
    with pytest.raises(LpafError, match="encoder.query is in no numbered block"):
        RANK_RULES["alternate"].check(["encoder.query"])


def test_feed_forward_matrices_pay_for_attention() -> None:
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    shapes = {f"layers.{i}.{name}": (40, 60) for i in range(2) for name in names}
    ranks = choose_ranks("feed-forward", shapes, params=0.75)
    assert {path for path, k in ranks.items() if k is not None} == {
        f"layers.{i}.{name}" for i in range(2) for name in names[2:]
    }
    assert set(ranks.values()) == {None, 40 * 60 // (2 * 100)}
    channels = {f"layers.{i}.mlp.down_proj": Channels(100, 30) for i in range(2)}
    attention = {f"layers.{i}.self_attn.v_proj": (30, 100) for i in range(2)}
    found = choose_ranks("feed-forward", attention, params=0.75, channels=channels)
    assert list(found.values()) == [None, None, 50, 50]
    with pytest.raises(LpafError, match="the attention matrices, which stay dense, are 50.0%"):
        choose_ranks("feed-forward", shapes, params=0.5)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("bert.encoder.layer.3.intermediate.dense", True),
        ("bert.encoder.layer.3.output.dense", True),
        ("bert.encoder.layer.3.attention.output.dense", False),
        ("distilbert.transformer.layer.0.ffn.lin2", True),
        ("distilbert.transformer.layer.0.attention.out_lin", False),
        ("transformer.h.11.mlp.c_proj", True),
        ("transformer.h.11.attn.c_proj", False),
        ("model.layers.0.mlp.gate_proj", True),
        ("model.layers.0.self_attn.o_proj", False),
    ],
)
def test_feed_forward_layers_by_their_names(path: str, expected: bool) -> None:
    assert is_compressible(f"{path}.kernel")
    assert is_feed_forward(path) == expected


def test_shares_leave_dense_what_factors_would_not_make_smaller() -> None:
    assert choose_ranks("share", SHAPES | {"flat": (1, 9)}, params=0.6)["flat"] is None
    assert choose_ranks("share", {"square": (6, 6)}, params=1.0) == {"square": None}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.5, 0.6, 0.75])
def test_ranks_by_loss_against_all_there_are(seed: int, share: float) -> None:
    """Greedy steps, which miss the best of all choices by less than the gain of one of them."""
    given = spectra(seed)
    found = choose_ranks("loss", SHAPES, params=share, spectra=given)
    choices = [[*range(1, m * n // (m + n) + 1), None] for m, n in SHAPES.values()]
    least = min(
        lost(ranks, given)
        for each in product(*choices)
        if numbers(ranks := dict(zip(SHAPES, each, strict=True))) <= share * DENSE
    )
    steps = [given[p][k] ** 2 for p, k in found.items() if k is not None and k < len(given[p])]
    assert least - 1e-9 <= lost(found, given) <= least + max(steps)
    alike = choose_ranks("share", SHAPES, params=share)
    assert lost(found, given) <= lost(alike, given)


def test_equal_matrices_are_cut_as_well_as_can_be() -> None:
    """Where all steps cost the same, the greedy choice is the best there is."""
    shapes = dict.fromkeys("abc", (8, 8))
    given = spectra(9, shapes)
    found = choose_ranks("loss", shapes, params=0.5, spectra=given)
    steps = sorted((s, p) for p, x in given.items() for s in x)[::-1]
    budget = int(0.5 * 192) // 16
    largest = [p for _, p in steps[:budget]]
    if min(map(largest.count, shapes)) > 0:
        assert found == {p: largest.count(p) for p in shapes}


def test_what_a_loss_hangs_on_most_is_cut_least() -> None:
    shapes = dict.fromkeys("ab", (8, 8))
    given = {"a": np.linspace(2, 1, 8), "b": np.linspace(2, 1, 8) * 1e-12}
    found = choose_ranks("loss", shapes, params=0.5, spectra=given)
    assert found == {"a": 3, "b": 1}


def test_what_stays_dense_pays_for_no_more_and_the_rest_goes_to_the_others() -> None:
    shapes = dict.fromkeys("abc", (8, 8))
    given = {"a": np.ones(8), "b": 1e-3 * np.ones(8), "c": 1e-3 * np.ones(8)}
    found = choose_ranks("loss", shapes, params=0.75, spectra=given)
    assert found == {"a": None, "b": None, "c": 1}  # 144 numbers: b loses nothing, c 7e-6


def test_a_rank_is_the_same_everywhere_and_of_one_rule_alone() -> None:
    assert choose_ranks("uniform", SHAPES, params=None, rank=3) == dict.fromkeys(SHAPES, 3)
    with pytest.raises(SettingError, match="sets one rank for all matrices, but --ranks loss"):
        choose_ranks("loss", SHAPES, params=None, rank=3, spectra=spectra(0))


def test_what_cannot_be_chosen() -> None:
    with pytest.raises(LpafError, match="cannot keep 10.00% of the compressible weights"):
        choose_ranks("loss", SHAPES, params=0.1, spectra=spectra(0))
    with pytest.raises(LpafError, match="unknown rank rule 'best': choose one of"):
        choose_ranks("best", SHAPES, params=0.5)
    with pytest.raises(LpafError, match="rank rule 'share' is registered already"):
        RANK_RULES.add("share", RankRule("share", "", lambda *_: {}))


def rooted(metric: np.ndarray | None, size: int) -> np.ndarray:
    if metric is None:
        return np.eye(size)
    if metric.ndim == 1:
        return np.diag(np.sqrt(metric))
    values, vectors = np.linalg.eigh(metric)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def exact(w: np.ndarray, left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray:
    m, n = w.shape
    return np.linalg.svd(rooted(left, m) @ w @ rooted(right, n).T, compute_uv=False)


def single(x: Any) -> Any:
    return None if x is None else jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)], ids=str)
@pytest.mark.parametrize("sides", ["none", "left", "right", "both", "vectors"])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e15])
def test_spectra_in_units_of_the_loss(shape: tuple[int, int], sides: str, scale: float) -> None:
    rng = np.random.default_rng(2)
    (m, n), w = shape, rng.normal(size=shape)
    x, g = rng.normal(size=(40, m)), rng.normal(size=(40, n))
    left = {"left": x.T @ x, "both": x.T @ x, "vectors": (x**2).sum(0)}.get(sides)
    right = {"right": g.T @ g, "both": g.T @ g, "vectors": (g**2).sum(0)}.get(sides)
    found = loss_spectrum(single(scale * w), Weighting(left=single(left), right=single(right)))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found / scale, exact(w, left, right), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_metrics_of_any_scale(scale: float) -> None:
    rng = np.random.default_rng(2)
    w, x = rng.normal(size=(6, 9)), rng.normal(size=(40, 6))
    left = x.T @ x
    found = loss_spectrum(single(w), Weighting(left=single(scale * left)))
    np.testing.assert_allclose(found / np.sqrt(scale), exact(w, left, None), rtol=1e-4)


def test_a_singular_metric_leaves_nothing_to_what_it_does_not_see() -> None:
    rng = np.random.default_rng(3)
    w, x = rng.normal(size=(6, 9)), rng.normal(size=(3, 6))
    found = loss_spectrum(single(w), Weighting(left=single(x.T @ x)))
    expected = exact(w, x.T @ x, None)
    np.testing.assert_allclose(found[:3], expected[:3], rtol=1e-4)
    assert (found[3:] < 1e-2 * expected[2]).all()  # roots of what float32 rounds
    assert not loss_spectrum(single(w), Weighting(left=jnp.zeros((6, 6)))).any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_massive_channel_does_not_drown_the_others(side: str) -> None:
    """Its input is 10 000 times the others: rounded to float32, its moment has no room for them."""
    rng = np.random.default_rng(4)
    w, x = rng.normal(size=(8, 8)), rng.normal(size=(40, 8))
    x[:, 2] *= 1e4
    w, moment = (w, x.T @ x) if side == "left" else (w.T, x.T @ x)
    expected = exact(w, *((moment, None) if side == "left" else (None, moment)))
    found = loss_spectrum(single(w), Weighting(**{side: single(moment)}))
    np.testing.assert_allclose(found, expected, rtol=1e-2)
