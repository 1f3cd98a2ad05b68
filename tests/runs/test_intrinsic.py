"""Fine-tuning within random subspaces: the subspace, the search, and how it goes on."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.linalg import fastfood
from lpaf_jax.runs import intrinsic
from lpaf_jax.runs.intrinsic import intrinsic_dimension, subspace
from tests.tiny import Tiny

START = {
    "a": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32),
    "b": jnp.asarray(np.random.default_rng(1).normal(size=5), jnp.float32),
}


def flat(params: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.asarray(params[name]).ravel() for name in START])


def test_one_map_moves_all_parameters() -> None:
    inside, small = subspace(START, 4, "did", 3)
    assert {name: x.shape for name, x in small.items()} == {"theta": (4,)}
    np.testing.assert_array_equal(flat(inside.at(small)), flat(START))
    theta = jnp.arange(1.0, 5.0)
    expected = flat(START) + np.asarray(fastfood(jax.random.key(3), 4, 17)(theta))
    np.testing.assert_allclose(flat(inside.at({"theta": theta})), expected, atol=1e-6)


def test_every_tensor_has_a_map_and_a_scale() -> None:
    inside, small = subspace(START, 6, "said", 3)
    assert {name: x.shape for name, x in small.items()} == {"theta": (4,), "scales": (2,)}
    np.testing.assert_array_equal(small["scales"], 1)
    np.testing.assert_array_equal(flat(inside.at(small)), flat(START))
    theta, scales = jnp.arange(1.0, 5.0), jnp.array([2.0, -1.0])
    keys = jax.random.split(jax.random.key(3), 2)
    found = inside.at({"theta": theta, "scales": scales})
    for key, name, scale in zip(keys, START, (2.0, -1.0), strict=True):
        step = fastfood(key, 4, START[name].size)(theta).reshape(START[name].shape)
        np.testing.assert_allclose(found[name], START[name] + scale * step, atol=1e-6)


def search(tiny: Tiny, out: Path, **chosen: Any) -> dict[str, Any]:
    usual = {"dims": (2, 4000), "seeds": (0,), "rates": (1.0,), "bisections": 0, "quiet": True}
    usual |= {"finetune_epochs": 8.0, "finetune_lr": 3e-3, "batch": 8, "length": 16}
    return intrinsic_dimension(tiny.model, task=tiny.data, out=out, **(usual | chosen))


@pytest.fixture(scope="module")
def found(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("intrinsic") / "out"
    return out, search(tiny, out)


def test_a_search_finds_where_nine_tenths_are_reached(found: tuple[Path, dict[str, Any]]) -> None:
    out, told = found
    assert told == json.loads((out / "intrinsic.json").read_text())
    assert set(told["scores"]) == {"2", "4000"}
    assert told["full"] > 0.9
    assert 0.4 < told["majority"] < 0.8
    reached = [int(d) for d, score in told["scores"].items() if score >= 0.9 * told["full"]]
    assert told["d90"] == (min(reached) if reached else None)
    assert told["scores"]["4000"] > told["scores"]["2"]
    assert not any((out / "checkpoints").rglob("*.json"))
    page = (out / "intrinsic.html").read_text()
    assert "Score by dimension" in page
    assert page.count("<svg") == 2


def test_what_was_trained_is_not_trained_again(
    found: tuple[Path, dict[str, Any]], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told = found
    monkeypatch.setattr(intrinsic, "Trainer", None)
    assert search(tiny, out) == told
    with pytest.raises(LpafError, match="belongs to another search"):
        search(tiny, out, finetune_epochs=3.0)


def test_the_gap_is_halved_by_the_logarithm(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def trained(self: Any, d: int | None, rate: float, seed: int, name: str) -> float:
        asked.append(d)
        return 0.8 if d is None else 0.5 + 0.25 * (d >= 30) - 0.01 * rate - 0.02 * seed

    monkeypatch.setattr(intrinsic._Search, "_train", trained)
    told = search(tiny, tmp_path, dims=(10, 1000), bisections=3, seeds=(0, 1), rates=(1.0, 4.0))
    assert asked == [None, None, *[10] * 4, *[1000] * 4, *[100] * 4, *[32] * 4, *[18] * 4]
    assert told["d90"] == 32
    assert told["scores"]["100"] == pytest.approx(0.75 - 0.01 - 0.01)


def test_the_command(tiny: Tiny, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(intrinsic._Search, "_train", lambda *_: 0.75)
    words = ["intrinsic", str(tiny.model), "--task", str(tiny.data), "--out", str(tmp_path / "o")]
    assert main([*words, "--dims", "100", "--kind", "said", "--length", "16", "--quiet"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "parameters: 75.0 % on validation." in told
    assert "move all of them: one random map and one scale per tensor (SAID)." in told
    assert "Nine tenths of this score are reached with d = 100 or less." in told


def test_dimensions_that_nobody_names_are_those_that_fit(
    tiny: Tiny, tmp_path: Path, monkeypatch: Any
) -> None:
    """Scales of SAID take one a tensor, of which the smallest d has too few."""
    tried = dict[str, list[int]]()
    for kind in ("did", "said"):
        asked: list[int | None] = []
        monkeypatch.setattr(
            intrinsic._Search, "_train", lambda _, d, *rest, to=asked: to.append(d) or 0.75
        )
        search(tiny, tmp_path / kind, dims=None, kind=kind)
        tried[kind] = [d for d in asked if d is not None]
    assert tried["did"] == list(intrinsic.DIMENSIONS)
    assert 10 not in tried["said"]
    assert tried["said"] == tried["did"][-len(tried["said"]) :] != []


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"dims": ()}, "dims is"),
        ({"dims": (0,)}, "dims is"),
        ({"dims": (10**9,)}, "dims is 1000000000, more than the"),
        ({"dims": (5,), "kind": "said"}, "dims is 5, which leaves nothing to train"),
        ({"seeds": (1, 1)}, "seeds is"),
        ({"rates": (0.0,)}, "rates is"),
        ({"bisections": -1}, "bisections is -1"),
    ],
)
def test_what_is_refused(tiny: Tiny, tmp_path: Path, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        search(tiny, tmp_path / "out", **chosen)
    assert not (tmp_path / "out" / "intrinsic.json").exists()


def test_a_search_that_goes_on_ends_as_an_unbroken_one(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def trained(self: Any, d: int | None, rate: float, seed: int, name: str) -> float:
        asked.append((d, seed))
        if len(asked) == stops:
            raise KeyboardInterrupt
        return 0.8 if d is None else 0.5 + 0.25 * (d >= 30) - 0.02 * seed

    monkeypatch.setattr(intrinsic._Search, "_train", trained)
    chosen: dict[str, Any] = {"dims": (10, 1000), "bisections": 2, "seeds": (0, 1)}
    stops = 0
    unbroken = search(tiny, tmp_path / "unbroken", **chosen)
    count = len(asked)
    assert [d for d, seed in asked if seed == 0] == [None, 10, 1000, 100, 32]

    asked.clear()
    stops = count  # in the last training: what was halved before is on disk
    with pytest.raises(KeyboardInterrupt):
        search(tiny, tmp_path / "broken", **chosen)
    assert search(tiny, tmp_path / "broken", **chosen) == unbroken
    assert len(asked) == count + 1
    assert search(tiny, tmp_path / "broken", **chosen) == unbroken
    assert len(asked) == count + 1

    # Other seeds: of what is there, and of it alone what was asked for.
    alone = search(tiny, tmp_path / "broken", **(chosen | {"seeds": (1,)}))
    assert len(asked) == count + 1
    assert alone["scores"]["1000"] == pytest.approx(0.73)
    with pytest.raises(LpafError, match=r"another search \(other read\)"):
        search(tiny, tmp_path / "broken", **(chosen | {"limit": 20}))


def test_the_gap_of_the_gain_is_halved_where_there_is_one(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every d has nine tenths of the score, and the smaller ones no such share of the gain."""

    def trained(self: Any, d: int | None, rate: float, seed: int, name: str) -> float:
        return 1.0 if d is None else 0.9 + 0.1 * (d >= 50)

    monkeypatch.setattr(intrinsic._Search, "_train", trained)
    told = search(tiny, tmp_path, dims=(10, 1000), bisections=2)
    assert told["d90"] == 10
    assert told["d90_of_gain"] == 100
    assert set(told["scores"]) == {"10", "32", "100", "1000"}
