"""Runs that train adapters alone: with a task, and of a text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.checkpoints import load_extra, load_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.models import as_function, parameters
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.stages import Compensate, FineTune, Tune
from lpaf_jax.stages.trainer import Trainer
from tests.one_shot import compress
from tests.one_shot import place as place
from tests.tiny import Tiny
from tests.tiny_decoder import LENGTH


@pytest.fixture(scope="module")
def healed(place: Path) -> Path:
    """The folder of a decoder whose factors were healed by adapters. Read it, never change it."""
    found = compress(place, "healed", params=0.4, lora=4, tune_epochs=30.0, tune_lr=1e-2)
    scores = {name: figures["perplexity"] for name, figures in found["stages"].items()}
    assert scores["final"] < scores["factorized"]
    return place / "healed"


def test_the_factors_alone_are_changed_and_keep_their_shapes(healed: Path) -> None:
    before, after = (
        load_file(healed / place / "model.safetensors") for place in ("stages/factorized", "model")
    )
    assert {name: x.shape for name, x in before.items()} == {n: x.shape for n, x in after.items()}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("down.weight", "up.weight"))}
    page = " ".join((healed / "report.html").read_text().split())
    assert "Adapters of rank 4 are trained beside the matrices or their factors" in page


def test_one_half_is_trained_after_the_other(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed in between, the same command goes on with the second half."""
    chosen = {"params": 0.4, "lora": 4, "lora_order": "in-turn", "tune_epochs": 3.0, "batch": 2}
    whole = compress(place, "in-turn", tune_lr=1e-2, **chosen)
    scores = {name: figures["perplexity"] for name, figures in whole["stages"].items()}
    assert scores["final"] < scores["factorized"]
    go_on, begun = Trainer.go_on, list[int]()

    def second_fails(self: Trainer, loss: Any, optimizer: Any, state: Any, *rest: Any, **by: Any):
        begun.append(int(state.step))
        if len(begun) == 2:
            raise KeyboardInterrupt
        return go_on(self, loss, optimizer, state, *rest, **by)

    monkeypatch.setattr(Trainer, "go_on", second_fails)
    with pytest.raises(KeyboardInterrupt):
        compress(place, "killed", tune_lr=1e-2, **chosen)
    compress(place, "killed", tune_lr=1e-2, **chosen)
    half = begun[1]
    assert begun == [0, half, half, half], "the first half was not trained again"
    one, other = (load_file(place / n / "model/model.safetensors") for n in ("in-turn", "killed"))
    assert all(np.array_equal(x, other[name]) for name, x in one.items())


def test_what_was_trained_is_an_adapter_of_peft(healed: Path, tmp_path: Path) -> None:
    """Merged into the model before it, it is the final one."""
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    assert main(["export", str(healed), "--format", "adapter", "--out", str(adapter)]) == 0
    values = json.loads((adapter / "adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"], values["task_type"]) == (4, 16, "CAUSAL_LM")
    assert main(["export", str(adapter), "--format", "merged", "--out", str(out)]) == 0
    ids = np.arange(LENGTH)[None]
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found, expected = (
        as_function(model)(parameters(model), {}, batch)
        for model in map(load_model, (out, healed / "model"))
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert load_extra(healed / "model").keys() >= {
        "base_model.model.model.layers.0.mlp.up_proj.down.lora_A.weight"
    }


@pytest.mark.slow
def test_the_last_stage_says_what_its_adapter_is(tiny: Tiny, tmp_path: Path) -> None:
    """And not the first one that has adapters, too."""
    recipe = Recipe(FineTune(), Compensate(lora=4, truncations=1), Tune(lora=2), name="both")
    run, adapter = tmp_path / "run", tmp_path / "adapter"
    chosen = tiny.chosen(run, recipe="lora-svd", quiet=True) | {"recipe": recipe}
    pipeline.compress(**{n: x for n, x in chosen.items() if n not in ("lora", "lora_alpha")})
    assert main(["export", str(run), "--format", "adapter", "--out", str(adapter)]) == 0
    values = json.loads((adapter / "adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"]) == (2, 16)


@pytest.mark.slow
def test_channels_of_heads_have_no_place_in_peft(place: Path, tmp_path: Path, capsys: Any) -> None:
    chosen = {"recipe": "channels", "params": 0.5, "lora": 4, "tune_epochs": 1.0}
    compress(place, "heads", **chosen)
    words = ["export", str(place / "heads"), "--format", "adapter", "--out", str(tmp_path / "a")]
    assert main(words) == 2
    assert "has lost channels of its heads" in capsys.readouterr().err


def test_a_run_without_adapters_has_none(place: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["export", str(place / "run"), "--format", "adapter", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "only a run whose last stage uses --lora has one" in capsys.readouterr().err


@pytest.mark.parametrize("base", [pytest.param("float", marks=pytest.mark.slow), "nf4"])
def test_a_decoder_of_fewer_channels(place: Path, base: str) -> None:
    chosen = {"recipe": "channels", "params": 0.5, "lora": 4, "lora_base": base}
    found = compress(place, f"channels-{base}", tune_epochs=30.0, tune_lr=1e-2, **chosen)
    scores = {name: figures["perplexity"] for name, figures in found["stages"].items()}
    assert scores["final"] < scores["factorized"]


@pytest.mark.slow
def test_a_classifier(tiny: Tiny, tmp_path: Path) -> None:
    """Taught by the dense model, its own matrices held in bfloat16."""
    chosen = {"lora": 3, "distil": 1.0, "dtype": "bfloat16", "quiet": True}
    found = pipeline.compress(**tiny.chosen(tmp_path / "run", recipe="kfac-svd", **chosen))
    assert list(found["stages"]) == ["dense", "factorized", "final"]
    before, after = (
        load_file(tmp_path / "run" / each / "model.safetensors")
        for each in ("stages/factorized", "model")
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    # A matrix that stayed as it is has one adapter, one of factors two.
    trained = load_extra(tmp_path / "run" / "model")
    ends = ("base_model.model.", ".lora_A.weight")
    places = {n.removeprefix(ends[0]).removesuffix(ends[1]) for n in trained if ends[1] in n}
    assert changed == {f"{place}.weight" for place in places}


@pytest.mark.parametrize(
    ("recipe", "chosen", "message"),
    [
        ("kfac-svd", {"lora": 0}, "must be a whole number, at least 1"),
        ("kfac-svd", {"lora": 4, "lora_alpha": 0.0}, "finite and more than 0"),
        ("kfac-svd", {"lora_base": "nf4"}, "add --lora"),
        ("kfac-svd", {"lora_order": "in-turn"}, "lora_order needs adapters: add --lora"),
        ("kfac-svd", {"lora": 4, "lora_order": "in-turn", "params": 1.0}, "no matrix becomes two"),
        ("loraprune", {"lora": 4, "lora_order": "in-turn"}, "no matrix becomes two factors"),
        ("shapeshifter", {"lora": 4}, "'kronecker' makes another form"),
        ("lpaf", {"lora": 4}, "this recipe mixes the factors"),
    ],
)
def test_what_cannot_work_is_refused(recipe: str, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(LpafError, match=message):
        make_settings("minilm", task="rotten_tomatoes", recipe=recipe, out="run", **chosen)
