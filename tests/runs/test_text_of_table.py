"""Runs without a task that make the table of token embeddings narrow, too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.factorization import table
from lpaf_jax.factorization.embeddings import factorized_table, head_moment, token_counts
from lpaf_jax.factorization.store import Store
from lpaf_jax.factors import KINDS
from lpaf_jax.models import layer_at, parameters
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.settings import make_settings
from tests.one_shot import perplexity
from tests.tiny_decoder import LENGTH, VOCABULARY, narrow, write_decoder, write_text

TOKENS = (np.random.default_rng(1).zipf(1.3, (7, LENGTH)) % VOCABULARY).astype(np.int32)
TABLES = {"gpt2": "transformer.wte", "llama": "model.embed_tokens"}
WIDTH = 12


@pytest.fixture(scope="module", params=list(TABLES))
def place(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 is tied; Llama is not, and stored as bfloat16."""
    folder = tmp_path_factory.mktemp("narrow")
    model = write_decoder(folder / request.param, request.param)
    if request.param == "llama":
        narrow(model)
    write_text(folder / "calibration.txt", 400, seed=1)
    write_text(folder / "held_out.txt", 100, seed=2)
    return model


def compress(model: Path, out: str, **chosen: Any) -> dict[str, Any]:
    texts = {name: model.parent / f"{name}.txt" for name in ("calibration", "held_out")}
    usual = {"samples": 6, "recipe": "drone", "params": 0.6, "embeddings": WIDTH, "quiet": True}
    return pipeline.compress(model, out=model.parent / out, **texts, **(usual | chosen))


def test_the_folder_is_what_was_judged(place: Path) -> None:
    torch = pytest.importorskip("torch")
    from lpaf_jax.checkpoints.torch_twin import torch_twin

    found = compress(place, "run")
    folder, name = place.parent / "run" / "model", TABLES[place.name]
    model = load_model(folder)
    expected = perplexity(folder, place.parent / "held_out.txt")
    assert found["stages"]["final"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    before = perplexity(place, place.parent / "held_out.txt")
    assert found["stages"]["dense"]["perplexity"] == pytest.approx(before, rel=1e-4)
    assert abs(before - expected) > 1
    arrays = parameters(model)
    assert arrays[f"{name}.codes"].shape == (VOCABULARY, WIDTH)
    assert found["params"]["final"]["total"] == sum(x.size for x in arrays.values())
    assert found["params"]["dense"]["total"] == sum(
        x.size for x in parameters(load_model(place)).values()
    )
    records = json.loads((folder / "config.json").read_text())["lpaf_factors"]
    assert records[name] == {"kind": "low_rank_embedding", "rank": WIDTH}
    assert name not in found["ranks"]
    ids = np.random.default_rng(0).integers(1, 50, (2, LENGTH))
    with torch.no_grad():
        theirs = torch_twin(folder)(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(np.asarray(model(ids)), theirs, atol=1e-4)
    assert "most accurate for the most frequent tokens" in (folder / "README.md").read_text()


def test_the_table_is_that_of_the_whole_model_in_memory(place: Path, tmp_path: Path) -> None:
    source, store = DecoderOnDisk(place), Store(tmp_path)
    store.folder.mkdir(exist_ok=True)
    table.narrow_table(source, TOKENS, WIDTH, "low-rank", store, lambda text: None)
    model = load_model(place)
    batch = {"input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS)}
    head = head_moment(model, [batch]) if place.name == "gpt2" else None
    whole = layer_at(model, TABLES[place.name]).weight[...]
    counts = token_counts(TOKENS, VOCABULARY)
    record, expected = factorized_table("low-rank", whole, WIDTH, counts, head)
    found = store.table()
    assert found is not None
    assert found[0] == record
    kind = KINDS[record["kind"]]
    tolerance = 1e-3 if head is not None else 0.01
    np.testing.assert_allclose(kind.dense(found[1]), kind.dense(expected), atol=tolerance)


def test_what_was_found_is_not_found_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    ones = {"codes": np.ones((3, 2), np.float32), "basis": np.ones((2, 4), np.float32)}
    store.keep_table({"kind": "low_rank_embedding", "rank": 2}, ones)
    monkeypatch.setattr(table, "factorized_table", None)
    table.narrow_table(DecoderOnDisk(place), TOKENS, WIDTH, "low-rank", store, lambda text: None)


@pytest.mark.parametrize("form", ["kronecker", "kronecker-sums", "trains"])
def test_in_another_form(place: Path, form: str) -> None:
    chosen: dict[str, Any] = {"recipe": "tensorgpt"} if form == "trains" else {"params": 0.6}
    if form == "trains":
        chosen["params"] = 1.0
    found = compress(place, form, embeddings=0.5, embeddings_as=form, **chosen)
    folder = place.parent / form / "model"
    expected = perplexity(folder, place.parent / "held_out.txt")
    assert found["stages"]["final"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    arrays = parameters(load_model(folder))
    assert found["params"]["final"]["total"] == sum(x.size for x in arrays.values())
    records = json.loads((folder / "config.json").read_text())["lpaf_factors"]
    assert (
        records[TABLES[place.name]]["kind"]
        == {
            "kronecker": "kronecker_embedding",
            "kronecker-sums": "kronecker_sum_embedding",
            "trains": "train_embedding",
        }[form]
    )


def test_alone_and_tuned(place: Path) -> None:
    """What is tuned are the factors of the table, in the dtype of the file."""
    found = compress(
        place, "albert", recipe="albert", params=1.0, tune_epochs=4.0, tune_lr=3e-3, batch=2
    )
    assert found["encoder_params_ratio"] == 1.0
    assert found["total_params_ratio"] < 0.98
    stages = {name: figures["perplexity"] for name, figures in found["stages"].items()}
    assert stages["final"] != stages["factorized"]
    again = perplexity(place.parent / "albert" / "model", place.parent / "held_out.txt")
    assert stages["final"] == pytest.approx(again, rel=1e-4)


def test_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(LpafError, match="40 would not make the 50 × 32 table smaller"):
        compress(place, "large", embeddings=40)
    assert not (place.parent / "large").exists()
    with pytest.raises(SettingError, match="params"):
        make_settings("m", calibration="a.txt", recipe="drone", params=1.0, out=tmp_path)
