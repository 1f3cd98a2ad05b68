"""Fewer feed-forward channels, as many in every block: an ordinary model of another width."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.checkpoints import load_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.settings import make_settings
from tests.one_shot import perplexity
from tests.tiny_decoder import LENGTH, write_decoder, write_text

WIDTHS = {"llama": "intermediate_size", "gpt2": "n_inner"}
# Numbers of the matrices of a block: attention, and each feed-forward channel.
ATTENTION = {"llama": 2 * 32 * 32 + 2 * 32 * 16, "gpt2": 4 * 32 * 32}
PRICE = {"llama": 3 * 32, "gpt2": 2 * 32}
CHANNELS = {"llama": 48, "gpt2": 128}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("width")
    for family in WIDTHS:
        write_decoder(folder / family, family)
    write_text(folder / "calibration.txt", 400, seed=1)
    write_text(folder / "held_out.txt", 100, seed=2)
    return folder


def compress(place: Path, family: str, out: str, **changes: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"recipe": "width-pruning", "samples": 6, "quiet": True}
    chosen |= {"calibration": place / "calibration.txt", "held_out": place / "held_out.txt"}
    chosen |= {"params": 0.7} | changes
    return dict(pipeline.compress(place / family, out=place / out, **chosen))


@pytest.mark.parametrize("family", WIDTHS)
def test_it_is_an_ordinary_model(place: Path, family: str) -> None:
    found = compress(place, family, f"{family}-run")
    folder = place / f"{family}-run" / "model"
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == family
    assert not {"lpaf_factors", "auto_map"} & set(values)
    assert not (folder / "modeling_lpaf.py").exists()
    # Whole numbers of channels, as many as the share leaves when attention stays.
    total = ATTENTION[family] + CHANNELS[family] * PRICE[family]
    width = math.floor((0.7 * total - ATTENTION[family]) / PRICE[family])
    assert values[WIDTHS[family]] == width
    assert found["encoder_params_ratio"] == pytest.approx(
        (ATTENTION[family] + width * PRICE[family]) / total
    )
    expected = perplexity(folder, place / "held_out.txt")
    assert found["stages"]["final"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert "Other matrices are unchanged" in (folder.parent / "report.html").read_text()
    card = (folder / "README.md").read_text()
    assert "Feed-forward layers have fewer channels." in card
    assert "trust_remote_code" not in card
    assert "factors" not in card


@pytest.mark.parametrize("family", WIDTHS)
def test_transformers_reads_it_without_our_code(place: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    compress(place, family, f"{family}-torch")
    folder = place / f"{family}-torch" / "model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = np.random.default_rng(0).integers(1, 50, (2, 6))
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits.numpy()
        told = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        cached, fresh = (
            theirs.generate(torch.tensor(ids), use_cache=use, **told).numpy()
            for use in (True, False)
        )
    np.testing.assert_allclose(np.asarray(load_model(folder)(ids)), logits, atol=1e-4)
    np.testing.assert_array_equal(cached, fresh)


@pytest.mark.slow
def test_it_is_tuned_and_compressed_again(place: Path) -> None:
    found = compress(place, "llama", "tuned", tune_epochs=20.0, tune_lr=3e-3)
    scores = {name: figures["perplexity"] for name, figures in found["stages"].items()}
    assert scores["final"] < scores["factorized"]
    folder = place / "tuned" / "model"
    assert "lpaf_factors" not in json.loads((folder / "config.json").read_text())
    shapes = {n: x.shape for n, x in load_file(folder / "model.safetensors").items()}
    assert shapes["model.layers.0.mlp.down_proj.weight"][0] == 32
    out = place / "again"
    chosen = {"calibration": place / "calibration.txt", "recipe": "drone", "params": 0.5}
    pipeline.compress(folder, out=out, samples=6, quiet=True, **chosen)
    assert perplexity(out / "model", place / "held_out.txt") < 10 * LENGTH**2


def test_more_than_the_channels_hold_is_refused_before_any_work(place: Path, capsys: Any) -> None:
    words = ["compress", str(place / "llama"), "--calibration", str(place / "calibration.txt")]
    words += ["--recipe", "width-pruning", "--params", "0.2", "--out", str(place / "no")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "the matrices that stay dense are already 40.0% of them: give a larger share" in said
    assert not (place / "no").exists()


def test_values_may_go_too_and_then_it_is_no_ordinary_model(place: Path) -> None:
    compress(place, "llama", "all", channels="all")
    values = json.loads((place / "all" / "model" / "config.json").read_text())
    assert values["lpaf_factors"]


def test_the_rule_drops_channels_alone() -> None:
    chosen = {"recipe": "drone", "ranks": "even-channels"}
    with pytest.raises(LpafError, match="add --channels feed-forward"):
        make_settings("smollm2", calibration="imdb", out="run", **chosen)
