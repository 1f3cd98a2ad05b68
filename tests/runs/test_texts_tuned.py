"""What runs without a task are judged by, and how they are tuned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.checkpoints import load_model, resolve_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import Examples, load_task, tasks
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.text_decoder import Decoder
from lpaf_jax.stages import Factorize, FineTune, MixedTune
from tests.gguf_files import write_gguf
from tests.one_shot import compress, perplexity
from tests.one_shot import place as place
from tests.tiny_decoder import LENGTH, narrow, write_decoder, write_text


def test_without_a_held_out_text_the_end_of_the_calibration_text_is(place: Path) -> None:
    found = compress(place, "judged")
    assert found["judged_by"] == "end of the calibration text"
    # A tenth of 25 pieces: they are no part of the sample.
    assert found["data"] == {"calibration_tokens": 6 * LENGTH, "judged_tokens": 2 * LENGTH}
    end = place / "end.txt"
    end.write_text(" ".join((place / "calibration.txt").read_text().split()[-2 * LENGTH :]))
    expected = perplexity(place / "judged" / "model", end)
    assert found["stages"]["final"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    card = (place / "judged" / "model" / "README.md").read_text()
    assert "end of the calibration text calibration.txt" in card


def test_a_text_of_one_piece_is_judged_itself_and_that_is_said(place: Path) -> None:
    short = write_text(place / "one.txt", 2 * LENGTH - 1, seed=1)
    found = compress(place, "flattered", calibration=short)
    assert found["judged_by"] == "calibration text"
    assert found["data"] == {"calibration_tokens": LENGTH, "judged_tokens": LENGTH}
    assert "so it is optimistic" in (place / "flattered" / "report.html").read_text()


def test_reviews_that_a_package_holds_are_texts(place: Path, monkeypatch) -> None:
    """By the name of a task: one split to calibrate with, another one to judge by."""
    texts = [f"w{i} w{i % 7} w{i % 5}" for i in range(200)]
    reviews = Examples(texts, None, np.arange(200, dtype=np.int32) % 2)
    monkeypatch.setattr(tasks, "movie_reviews", lambda name: reviews)
    found = compress(place, "imdb", calibration=Path("imdb"), held_out=Path("imdb"), samples=1000)
    splits = load_task("imdb")
    tokens = [3 * len(split) // LENGTH * LENGTH for split in (splits.train, splits.test)]
    assert list(found["data"].values()) == tokens
    assert "IMDb" in (place / "imdb" / "report.html").read_text()


def test_a_file_of_llama_cpp_is_written_as_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.Q4_1.gguf", "llama", "Q4_1")
    text = tmp_path / "text.txt"
    text.write_text("In the thin morning the film begins.\n" * 30)
    chosen = {"recipe": "drone", "params": 0.6, "length": 16, "quiet": True}
    found = pipeline.compress(file, out=tmp_path / "run", calibration=text, **chosen)
    assert found["read_from"] == {"bytes": file.stat().st_size, "codes": ["Q4_1"]}
    numbers = found["params"]["dense"]["total"]
    assert 2 * numbers <= found["bytes_on_disk"]["dense"] < 2.1 * numbers  # bfloat16
    assert found["bytes_on_disk"]["final"] < found["bytes_on_disk"]["dense"]
    tensors = load_file(tmp_path / "run" / "model" / "model.safetensors")
    kinds = {name: str(x.dtype) for name, x in tensors.items()}
    assert kinds["model.layers.0.self_attn.q_proj.down.weight"] == "bfloat16"
    assert kinds["model.norm.weight"] == "float32"
    dense = load_model(resolve_model(str(file)))
    np.testing.assert_allclose(
        tensors["model.embed_tokens.weight"].astype(np.float32),
        dense.model.embed_tokens.weight[...],
        rtol=2**-8,
    )
    page = (tmp_path / "run" / "report.html").read_text()
    assert "quantize it again" in page
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(text)]) == 0


def test_blocks_are_tuned_by_the_text_alone(place: Path) -> None:
    found = {}
    for epochs in (0, 20):
        chosen = {"block_epochs": epochs, "block_lr": 3e-3, "params": 0.4}
        out = f"blocks-{epochs}"
        compress(place, out, held_out=place / "held_out.txt", **chosen)
        log = (place / out / "logs" / "run.log").read_text()
        assert ("after tuning" in log) == (epochs > 0)
        found[epochs] = load_file(place / out / "model" / "model.safetensors")
    moved = {n for n, x in found[0].items() if not np.array_equal(x, found[20][n])}
    assert moved
    assert all(".down." in name or ".up." in name for name in moved)
    with pytest.raises(LpafError, match="block_epochs .* works only for a decoder without a task"):
        pipeline.compress(
            place / "llama", task=place / "held_out.txt", out=place / "no", block_epochs=1
        )


def test_the_factors_are_tuned_on_the_text_where_epochs_are_asked_for(place: Path) -> None:
    narrow(write_decoder(place / "narrow", "llama"))
    chosen = {"calibration": place / "calibration.txt", "held_out": place / "held_out.txt"}
    chosen |= {"samples": 24, "params": 0.4, "recipe": "drone", "quiet": True, "distil": 1.0}
    tuning = {"tune_epochs": 6, "tune_lr": 3e-3, "batch": 4}
    found = pipeline.compress(place / "narrow", out=place / "healed", **chosen, **tuning)
    plain = pipeline.compress(place / "narrow", out=place / "plain", **(chosen | {"distil": 0.0}))
    assert list(found["stages"]) == ["dense", "factorized", "final"]
    # Nothing is listed of what was not done.
    assert found["settings"]["tune_lr"] == 3e-3
    assert found["settings"]["batch"] == 4
    assert plain["settings"]["solver"] == "metric"
    assert not {"finetune_epochs", "tune_lr", "batch"} & plain["settings"].keys()
    assert "finetune_epochs" not in found["settings"]
    scores = {name: each["perplexity"] for name, each in found["stages"].items()}
    assert scores["factorized"] == plain["stages"]["final"]["perplexity"]
    assert scores["final"] < 0.98 * scores["factorized"]
    expected = perplexity(place / "healed" / "model", place / "held_out.txt")
    assert scores["final"] == pytest.approx(expected, rel=1e-3)
    first, last = (
        load_file(place / "healed" / name / "model.safetensors")
        for name in ("stages/factorized", "model")
    )
    assert {n: (str(x.dtype), x.shape) for n, x in first.items()} == {
        n: (str(x.dtype), x.shape) for n, x in last.items()
    }
    assert {str(x.dtype) for x in last.values()} == {"bfloat16"}
    assert set(found["seconds"]) == {"factorized", "final", "total"}
    page = (place / "healed" / "report.html").read_text()
    assert "with the factors in place of the original matrices" in page


@pytest.mark.slow
def test_mixed_tuning_of_a_text_that_was_killed_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = Factorize(importance="activations", solver="metric", ranks="share")
    chosen = {"recipe": Recipe(FineTune(), cut, MixedTune(), name="mixed")}
    chosen |= {"tune_epochs": 4, "batch": 2, "held_out": place / "held_out.txt"}
    found = compress(place, "unbroken", **chosen)
    expected = found["stages"]
    assert "with probability p" in found["described"]["final"]["text"]
    assert expected["final"]["perplexity"] != expected["factorized"]["perplexity"]
    real, walked = Decoder.assemble, []

    def stop(self: Decoder, *given: Any) -> None:
        real(self, *given)
        walked.append(given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            compress(place, "broken", **chosen)
    assert walked
    assert compress(place, "broken", **chosen)["stages"] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tune_lr": 1e-3}, "tune_lr only affects training, which needs --tune-epochs"),
        ({"batch": 3}, "batch only affects training, which needs --tune-epochs"),
        ({"finetune_epochs": 3.0}, "finetune_epochs only affects training, which needs --task"),
        (
            {"tune_epochs": 1, "transfer": Path("x.txt")},
            "transfer only affects training, which needs --task",
        ),
    ],
)
def test_what_is_said_of_training_must_have_a_use(
    place: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(LpafError, match=message):
        compress(place, "refused", **given)
