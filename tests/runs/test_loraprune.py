"""Runs that drop heads and channels: what is left, on disk, in PyTorch, and on the page."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax import train
from lpaf_jax.checkpoints import load_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.models import as_function, compressible, parameters
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs import training
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.stages import FineTune, MixedTune, PruneGroups
from lpaf_jax.train import Checkpoints
from tests.runs.test_language import write_story
from tests.tiny import ENCODER, Tiny, fast
from tests.tiny_decoder import LENGTH, write_decoder

CHOSEN = {"recipe": "loraprune", "prune_lora": 3, "lora_lr": 1e-2, "lora_epochs": 2.0}


@pytest.fixture(scope="module")
def pruned(tiny: Tiny, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run at half of the numbers. Read it, never change it."""
    folder = tmp_path_factory.mktemp("loraprune") / "run"
    compress(**tiny.chosen(folder, reuse=finished, **CHOSEN))
    return folder


@pytest.fixture(scope="module")
def decoder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on a text, of a decoder of two heads of keys for four of queries."""
    folder = tmp_path_factory.mktemp("decoder")
    chosen = fast("loraprune") | CHOSEN | {"params": 0.6, "length": LENGTH, "tune_epochs": 0.5}
    model = write_decoder(folder / "llama", "llama")
    text = write_story(folder / "text.txt")
    compress(model, task=text, out=folder / "run", **chosen)
    return folder / "run"


def weights(folder: Path, place: str = "model") -> dict[str, np.ndarray]:
    return dict(load_file(folder / place / "model.safetensors"))


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_as_many_are_left_in_every_block(pruned: Path) -> None:
    metrics, values = read(pruned / "metrics.json"), read(pruned / "model" / "config.json")
    # Two of four heads, of 4 · 32 · 8 numbers each, and half of the channels of 2 · 32.
    assert metrics["params"]["final"]["encoder"] == ENCODER // 2
    assert values["intermediate_size"] == 64
    records = values["lpaf_factors"]
    assert len(records) == 12
    of_heads = {path: x["heads"] for path, x in records.items() if "attention" in path}
    assert len(of_heads) == 8
    assert all(sorted(heads["left"]) == [0, 0, 8, 8] for heads in of_heads.values())
    assert {records[p]["inputs"] for p in records if p.endswith("r.1.output.dense")} == {32}
    page = " ".join((pruned / "report.html").read_text().split())
    assert "Heads and channels are dropped, the same number in every block" in page
    assert (
        "2 of 4 heads and 32 of 64 channels in each block, keeps 50.0 %"
        in (pruned / "logs" / "run.log").read_text()
    )


def test_it_is_what_was_trained_with_masks(pruned: Path) -> None:
    """Before tuning: adapters moved the heads that are left, and nothing else."""
    before, after = weights(pruned, "stages/dense"), weights(pruned, "stages/factorized")
    record = read(pruned / "stages" / "factorized" / "config.json")["lpaf_factors"]
    name = "bert.encoder.layer.1.attention.self.query"
    rows = np.repeat(np.array(record[name]["heads"]["left"]) > 0, 8)
    change = after[f"{name}.weight"] - before[f"{name}.weight"][rows]
    assert np.linalg.matrix_rank(change, tol=1e-4) <= 3
    assert np.abs(change).max() > 1e-3
    np.testing.assert_array_equal(after[f"{name}.bias"], before[f"{name}.bias"][rows])
    same = [n for n in before if n.startswith(("bert.embeddings", "classifier"))]
    assert same
    assert all(np.array_equal(before[n], after[n]) for n in same)


def test_what_cards_say(pruned: Path, decoder: Path) -> None:
    cards = [pruned / "model", pruned / "stages" / "factorized"]
    cards += [decoder / "model", decoder / "stages" / "factorized"]
    for place in cards:
        card = " ".join((place / "README.md").read_text().split())
        assert "factors" not in card, place
        assert "pruned" in card.partition(" ## ")[0], place
        assert '"pruning"' in card
        assert ("trust_remote_code" in card) == (pruned in place.parents)


def test_the_other_commands_read_it(
    pruned: Path, decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(pruned)]) == 0
    assert "50.0 %" in capsys.readouterr().out
    dense = tmp_path / "dense"
    assert main(["export", str(pruned), "--format", "dense", "--out", str(dense)]) == 0
    params = parameters(load_model(dense))
    assert sum(x.size for x in compressible(params).values()) == ENCODER
    for folder in (pruned, decoder):
        words = ["--repeats", "1", "--batches", "1", "--length", "4"]
        file = tmp_path / "bench.json"
        assert main(["bench", str(folder), *words, "--json", str(file)]) == 0
        assert read(file)["dense"].endswith("stages/dense")
    assert main(["export", str(decoder), "--format", "dense", "--out", str(tmp_path / "no")]) == 2
    assert "is already dense" in capsys.readouterr().err
    alone = shutil.copytree(decoder / "model", tmp_path / "alone")
    assert main(["bench", str(alone)]) == 2
    assert "is dense" in capsys.readouterr().err


def test_pytorch_computes_the_same(pruned: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    kind = transformers.AutoModelForSequenceClassification
    theirs = kind.from_pretrained(pruned / "model", trust_remote_code=True).eval()
    ids = np.random.default_rng(0).integers(4, 30, (3, 9)).astype(np.int32)
    mask = np.arange(9) < np.array([9, 5, 2])[:, None]
    given = {"input_ids": ids, "attention_mask": mask.astype(np.int32)}
    with torch.no_grad():
        expected = theirs(**{n: torch.tensor(x).long() for n, x in given.items()}).logits.numpy()
    ours = load_model(pruned / "model")
    np.testing.assert_allclose(as_function(ours)(parameters(ours), {}, given), expected, atol=1e-4)


def test_a_decoder_is_an_ordinary_smaller_one(decoder: Path) -> None:
    values = read(decoder / "model" / "config.json")
    assert values["model_type"] == "llama"
    assert not {"lpaf_factors", "auto_map"} & set(values)
    heads = {n: values[n] for n in ("num_attention_heads", "num_key_value_heads", "head_dim")}
    assert heads == {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    shapes = {name: x.shape for name, x in weights(decoder).items()}
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (16, 32)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (8, 32)
    channels = values["intermediate_size"]
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (32, channels)
    total, head, channel = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48, 32 * 48, 3 * 32
    assert head + channels * channel <= 0.6 * total < head + (channels + 1) * channel
    card = (decoder / "model" / "README.md").read_text()
    assert "trust_remote_code" not in card
    assert 'library_name: "transformers"' in card
    first, last = (read(decoder / "metrics.json")["stages"][n] for n in ("factorized", "final"))
    assert last["perplexity"] < first["perplexity"]


def test_transformers_reads_it_without_our_code(decoder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(decoder / "model").eval()
    ids = np.random.default_rng(0).integers(1, 50, (2, 4)).astype(np.int32)
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits.numpy()
        told = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        cached, fresh = (
            theirs.generate(torch.tensor(ids), use_cache=use, **told).numpy()
            for use in (True, False)
        )
    np.testing.assert_allclose(load_model(decoder / "model")(ids), logits, atol=1e-4)
    np.testing.assert_array_equal(cached, fresh)


@pytest.mark.slow
def test_a_killed_run_ends_as_an_unbroken_one(
    tiny: Tiny, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "Checkpoints", lambda folder, **_: Checkpoints(folder, every=0.0))
    plain = train.task_loss

    def breaks_down(forward: Any, objective: Any) -> Any:
        def loss(params: Any, fixed: Any, batch: Any, keys: Any, step: Any) -> Any:
            value, logged = plain(forward, objective)(params, fixed, batch, keys, step)
            masked = any(path.endswith("lora_gate") for path in params)
            return jnp.where(masked & (step >= 17), jnp.nan, value), logged

        return loss

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "task_loss", breaks_down)
        with pytest.raises(LpafError, match="at step 18 of 28"):
            compress(**tiny.chosen(run, **CHOSEN))
    compress(**tiny.chosen(run, **CHOSEN))
    assert "goes on after step 17" in (run / "logs" / "run.log").read_text()
    found, expected = (weights(folder, "stages/factorized") for folder in (run, pruned))
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, atol=1e-4, err_msg=name)


def test_what_cannot_be_kept_is_refused_before_any_work(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"params": 0.5, "groups": "channels"} | CHOSEN
    words = tiny.arguments(tmp_path / "no", **(changes | {"params": 0.3}))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "--params is 0.3, but a single channel in every block" in said
    assert "drop heads, too (--groups all)" in said
    assert not (tmp_path / "no" / "stages").exists()


@pytest.fixture(scope="module")
def spared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a decoder of three blocks, of which the last one is spared."""
    folder = tmp_path_factory.mktemp("spared")
    chosen = fast("loraprune") | CHOSEN | {"params": 0.6, "length": LENGTH, "tune_epochs": 0.5}
    model = write_decoder(folder / "llama", "llama", num_hidden_layers=3)
    text = write_story(folder / "text.txt")
    ends = {"spare_ends": True, "group_criterion": "random"}
    compress(model, task=text, out=folder / "run", **(chosen | ends))
    return folder / "run"


@pytest.mark.slow
def test_the_ends_are_spared(spared: Path) -> None:
    """No tenth of three blocks, but the last one; the share is met by the other two."""
    metrics, records = read(spared / "metrics.json"), read(spared / "model/config.json")
    values, records = records, records["lpaf_factors"]
    assert not metrics["ordinary"]
    assert (values["intermediate_size"], values["num_attention_heads"]) == (48, 4)
    assert {path.split(".")[2] for path in records} == {"0", "1"}
    assert len(records) == 14
    # One of two heads of keys with its two of queries.
    assert records["model.layers.0.self_attn.k_proj"]["outputs"] == 8
    assert sorted(records["model.layers.1.self_attn.q_proj"]["heads"]["left"]) == [0, 16]
    assert 0.59 < metrics["encoder_params_ratio"] <= 0.6
    assert "in each block but the spared ones, keeps" in (spared / "logs/run.log").read_text()
    page = " ".join((spared / "report.html").read_text().split())
    assert "in every block but the last and the first tenth, rounded down: drawn at random" in page


@pytest.mark.slow
def test_blocks_of_several_widths_are_read_by_pytorch(spared: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ids = np.random.default_rng(0).integers(0, 50, (3, LENGTH)).astype(np.int32)
    for name in ("stages/factorized", "model"):
        there = transformers.AutoModelForCausalLM.from_pretrained(
            spared / name, trust_remote_code=True
        ).eval()
        with torch.no_grad():
            expected = there(torch.from_numpy(ids).long()).logits.numpy()
        np.testing.assert_allclose(load_model(spared / name)(ids), expected, atol=1e-4)


@pytest.mark.slow
def test_channels_alone_leave_an_ordinary_encoder(tiny: Tiny, tmp_path: Path) -> None:
    chosen = CHOSEN | {"groups": "channels", "group_criterion": "gates", "params": 0.75}
    found = compress(**tiny.chosen(tmp_path / "run", **chosen))
    values = read(tmp_path / "run" / "model" / "config.json")
    assert found["ordinary"]
    assert values["model_type"] == "bert"
    assert values["intermediate_size"] == 32
    assert values["num_attention_heads"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": "heads"}, "all, channels"),
        ({"group_criterion": "luck"}, "lora, gates, random"),
        ({"prune_lora": 0}, "at least 1"),
        ({"lora_epochs": 0.0}, "more than 0"),
        ({"lora_lr": 1.0}, r"in \(0, 1\)"),
        ({"params": 1.5}, r"in \(0, 1\]"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LpafError, match=message):
        make_settings("minilm", task="rotten_tomatoes", out="run", **(CHOSEN | changes))


def test_what_needs_factors_or_a_task_is_refused() -> None:
    with pytest.raises(LpafError, match="trains during compression"):
        make_settings("smollm2", calibration="imdb", recipe="loraprune", out="run")
    with pytest.raises(LpafError, match="drops heads: leave it out, or add --groups channels"):
        make_settings("minilm", task="sst2", out="run", recipe="loraprune", distil_attention=1.0)
    mixed = Recipe(FineTune(), PruneGroups(), MixedTune(), name="both")
    with pytest.raises(LpafError, match="PruneGroups makes none: put Tune after it"):
        make_settings("minilm", task="rotten_tomatoes", recipe=mixed, out="run")
