"""Runs without a task that drop feed-forward channels: the folder, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.stages import Factorize, FineTune, MixedTune
from tests.one_shot import compress, perplexity, words
from tests.one_shot import place as place
from tests.tiny_decoder import LENGTH


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    held_out = place / "held_out.txt"
    return compress(place, "channels", recipe="channels", held_out=held_out, params=0.5)


def test_the_folder_is_read_here_and_in_pytorch(place: Path, found: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from lpaf_jax.checkpoints.torch_twin import torch_twin

    folder = place / "channels" / "model"
    expected = perplexity(folder, place / "held_out.txt")
    assert found["stages"]["final"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    ids = np.random.default_rng(0).integers(1, 50, (2, LENGTH))
    with torch.no_grad():
        theirs = torch_twin(folder)(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(np.asarray(load_model(folder)(ids)), theirs, atol=1e-4)


def test_what_is_told_is_so(place: Path, found: dict[str, Any]) -> None:
    run = place / "channels"
    records = json.loads((run / "model" / "config.json").read_text())["lpaf_factors"]
    sliced = {path: r for path, r in records.items() if r["kind"] == "sliced"}
    places = {"gate_proj", "up_proj", "down_proj", "v_proj", "o_proj"}
    assert {path.rpartition(".")[2] for path in sliced} == places
    kept = 0
    for cut in found["matrices"]:
        record = cut["record"] or {"inputs": cut["shape"][0], "outputs": cut["shape"][1]}
        sliced_to = record["inputs"] * record["outputs"] if "inputs" in record else None
        kept += sliced_to or record["rank"] * sum(cut["shape"])
    assert found["params"]["final"]["encoder"] == kept
    assert 0.45 < found["encoder_params_ratio"] <= 0.5
    page = (run / "report.html").read_text()
    widths = {r["inputs"] for path, r in sliced.items() if path.endswith("down_proj")}
    for width in widths:
        assert f"{width} channels" in page or f"{min(widths)} to {max(widths)} channels" in page
    assert "Feed-forward layers and attention values have lost channels" in page
    assert "Rank or channels" in page
    card = (run / "model" / "README.md").read_text()
    assert "compressed without training" in card
    assert "Feed-forward layers and attention values have fewer channels. The other" in card


def test_from_the_command_and_as_a_dense_model(
    place: Path, found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(place, "again", params=0.5, recipe="channels")
    assert main(given) == 0
    told = json.loads((place / "again" / "metrics.json").read_text())
    assert told["stages"]["final"] == pytest.approx(found["stages"]["final"])
    assert main(["inspect", str(place / "again")]) == 0
    assert "a matrix that has lost channels" in " ".join(capsys.readouterr().out.split())
    assert (
        main(["export", str(place / "again"), "--format", "dense", "--out", str(place / "plain")])
        == 0
    )
    plain = perplexity(place / "plain", place / "held_out.txt")
    assert plain == pytest.approx(told["stages"]["final"]["perplexity"], rel=1e-4)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"task": "rotten_tomatoes"}, "'all' .* works only for a decoder without a task"),
        (
            {"calibration": "a.txt", "rank": 8, "ranks": "uniform"},
            "does not set the number of channels",
        ),
        ({"calibration": "a.txt", "channels": "few"}, "channels.*few"),
        ({"calibration": "a.txt", "channels_by": "size"}, "channels_by.*size"),
        ({"calibration": "a.txt", "channels_by": "norms"}, "add --channels feed-forward"),
        (
            {"calibration": "a.txt", "channels_by": "norms", "channels": "feed-forward"},
            "use --ranks share, or --channels-by loss",
        ),
        (
            {
                "calibration": "a.txt",
                "recipe": Recipe(FineTune(), Factorize(channels="feed-forward"), MixedTune()),
                "importance": "activations",
                "solver": "metric",
                "tune_epochs": 2.0,
            },
            "cannot be combined with the mixed-rank tuning",
        ),
    ],
    ids=str,
)
def test_refused(tmp_path: Path, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises((SettingError, LpafError), match=message):
        make_settings("minilm", out=tmp_path, **{"recipe": "channels"} | chosen)


def test_what_is_left_is_tuned_by_the_text(place: Path, found: dict[str, Any]) -> None:
    told = compress(
        place,
        "tuned",
        recipe="channels",
        held_out=place / "held_out.txt",
        params=0.5,
        tune_epochs=4.0,
        tune_lr=1e-3,
        batch=2,
    )
    stages = told["stages"]
    assert stages["factorized"] == pytest.approx(found["stages"]["final"])
    assert stages["final"]["perplexity"] != stages["factorized"]["perplexity"]
    folder = place / "tuned" / "model"
    records = json.loads((folder / "config.json").read_text())["lpaf_factors"]
    assert {each["kind"] for each in records.values()} == {"low_rank", "sliced"}
    again = perplexity(folder, place / "held_out.txt")
    assert stages["final"]["perplexity"] == pytest.approx(again, rel=1e-4)
