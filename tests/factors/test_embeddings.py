"""Tables of embeddings as factors: the formula, the folders, and whole runs."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.evaluation.bench import find_pair
from lpaf_jax.evaluation.inspection import inspect_model
from lpaf_jax.factorization import (
    factorize_embeddings,
    head_moment,
    table_record,
    token_counts,
)
from lpaf_jax.factors import LOW_RANK_EMBEDDING
from lpaf_jax.models import layer_at, parameters
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.runs.settings import make_settings
from tests.factors.folders import config_of, factorize, logits, with_config
from tests.factors.test_folders import (
    assert_encoder_read_everywhere,
    assert_read_everywhere,
    assert_same_when_dense,
)
from tests.tiny import WORDS, Tiny
from tests.tiny_decoder import VOCABULARY, write_decoder

RANDOM = np.random.default_rng(4)
COUNTS = 1 + RANDOM.zipf(1.3, VOCABULARY) % 100
RANK, HIDDEN = 12, 32
TIED = {"gpt2": True, "llama": False}
BATCHES = [
    {
        "input_ids": RANDOM.integers(1, VOCABULARY, (3, 8)).astype(np.int32),
        "attention_mask": np.arange(8) < np.array([[8], [5], [2]]),
    }
    for _ in range(2)
]


def write_embeddings(place: Path, family: str) -> Path:
    """Two thirds of the matrices are factors, and so are the token embeddings."""
    tied = TIED[family]
    dense = write_decoder(place / f"{family}_dense", family, tie_word_embeddings=tied)
    model = load_model(dense)
    factorize(model)
    head = head_moment(model, BATCHES) if tied else None
    factorize_embeddings(model, FAMILIES[family].table, RANK, COUNTS, head)
    save_model(model, place / family, source=dense, label_names=None, card="# Card\n")
    np.save(place / family / "expected.npy", logits(model))
    return place / family


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("embeddings")
    return {family: write_embeddings(place, family) for family in ("gpt2", "llama")}


def test_what_is_left_of_a_table_is_nearest_where_tokens_are_frequent(
    folders: dict[str, Path],
) -> None:
    for family, folder in folders.items():
        path = FAMILIES[family].table
        table = layer_at(load_model(folder.with_name(f"{family}_dense")), path).weight[...]
        model, t = load_model(folder), np.asarray(table, np.float64)
        metric = np.eye(HIDDEN)
        if TIED[family]:
            c = given_to_head(folder.with_name(f"{family}_dense"))
            metric = (HIDDEN * c / np.trace(c) + np.eye(HIDDEN)) / 2
        values, vectors = np.linalg.eigh(metric)
        half = vectors * np.sqrt(values) @ vectors.T
        _, vectors = np.linalg.eigh(half @ t.T @ (COUNTS[:, None] * t) @ half)
        q = vectors[:, -RANK:]
        found = layer_at(model, path)
        a, b = (np.asarray(x[...]) for x in (found.codes, found.basis))
        expected = t @ half @ q @ q.T @ np.linalg.inv(half)
        np.testing.assert_allclose(a @ b, expected, atol=1e-3)
        np.testing.assert_allclose(a.T @ a, b @ b.T, atol=1e-4)


def given_to_head(folder: Path) -> np.ndarray:
    """The mean of hᵀh over the tokens of `BATCHES`, of the matrices as they are factorized."""
    model = load_model(folder)
    factorize(model)
    found = []
    for batch in BATCHES:
        ids, mask = (jnp.asarray(batch[name]) for name in ("input_ids", "attention_mask"))
        hidden = model.with_hidden(ids, mask.astype(jnp.int32))[1][-1]
        found.append(np.asarray(hidden, np.float64)[batch["attention_mask"]])
    h = np.concatenate(found)
    return h.T @ h / len(h)


def test_what_is_written_is_read_here_and_in_pytorch(folders: dict[str, Path]) -> None:
    assert_read_everywhere(folders)
    for family, folder in folders.items():
        record = config_of(folder)["lpaf_factors"][FAMILIES[family].table]
        assert record == {"kind": "low_rank_embedding", "rank": RANK}


def test_dense_it_is_the_same_model(folders: dict[str, Path], tmp_path: Path) -> None:
    assert_same_when_dense(folders, tmp_path)


def test_inspect_counts_them_with_the_whole_and_not_with_the_matrices(
    folders: dict[str, Path],
) -> None:
    folder = folders["llama"]
    found, numbers = inspect_model(folder), RANK * (VOCABULARY + HIDDEN)
    [table] = [m for m in found["matrices"] if m["kind"] == "low_rank_embedding"]
    assert (table["parameters"], table["flop"]) == (numbers, 2 * RANK * HIDDEN)
    dense = inspect_model(folder.with_name("llama_dense"))["parameters"]
    assert found["parameters"]["encoder_dense"] == dense["encoder_dense"]
    assert found["parameters"]["total_dense"] == dense["total"]
    gone = dense["encoder"] - found["parameters"]["encoder"] + VOCABULARY * HIDDEN - numbers
    assert found["parameters"]["total"] == dense["total"] - gone


@pytest.mark.parametrize("rank", [None, 0, "many", True])
def test_a_record_that_does_not_fit(folders: dict[str, Path], tmp_path: Path, rank: Any) -> None:
    folder = write_embeddings(tmp_path, "llama")
    records = config_of(folder)["lpaf_factors"]
    table = {"kind": "low_rank_embedding"} | ({} if rank is None else {"rank": rank})
    with_config(folder, lpaf_factors=records | {"model.embed_tokens": table})
    with pytest.raises(LpafError, match="model.embed_tokens, of kind low_rank_embedding, has"):
        load_model(folder)


def test_an_encoder_is_read_here_and_in_pytorch(tiny: Tiny, tmp_path: Path) -> None:
    model, words = load_model(tiny.model, num_labels=2), len(WORDS)
    factorize_embeddings(model, FAMILIES["bert"].table, 9, np.ones(words, int))
    out = tmp_path / "narrow"
    save_model(model, out, source=tiny.model, label_names=["no", "yes"], card="# Card\n")
    assert_encoder_read_everywhere(model, words, out)


def test_the_dense_model_beside_it_is_found(folders: dict[str, Path]) -> None:
    for family, folder in folders.items():
        pair = find_pair(folder, folder.with_name(f"{family}_dense"))
        assert pair.dense == folder.with_name(f"{family}_dense")


def rank_of(shape: tuple[int, int], width: float) -> int:
    rank: int = table_record("low-rank", shape, width)["rank"]
    return rank


def test_widths() -> None:
    assert rank_of((50, 32), 12) == 12
    assert rank_of((50, 32), 0.5) == int(0.5 * 1600 / 82)
    assert rank_of((50, 32), 19) == 19
    with pytest.raises(
        LpafError, match=r"20 would not make .* 50 × 32 table smaller: give at most 19"
    ):
        rank_of((50, 32), 20)
    with pytest.raises(LpafError, match="is too small for rank 1"):
        rank_of((50, 32), 0.01)
    counts = token_counts([np.array([1, 1, 3]), np.array([3])], 5)
    np.testing.assert_array_equal(counts, [1, 3, 1, 3, 1])


def test_gradients_reach_rows_that_many_tokens_share() -> None:
    from jax import grad

    codes, basis = jnp.arange(8.0).reshape(4, 2), jnp.ones((2, 3))
    index = jnp.array([1, 1, 2])

    def total(codes: Any) -> Any:
        return jnp.sum(LOW_RANK_EMBEDDING.layer({"codes": codes, "basis": basis}, None, {})(index))

    expected = np.array([[0, 0], [6, 6], [3, 3], [0, 0]])
    np.testing.assert_array_equal(grad(total)(codes), expected)


@pytest.mark.slow
def test_a_run_that_mixes_ranks(tiny: Tiny, tmp_path: Path) -> None:
    metrics = compress(**tiny.chosen(tmp_path / "run", embeddings=0.7))
    final, dense = (
        parameters(load_model(tmp_path / "run" / place)) for place in ("model", "stages/dense")
    )
    table = "bert.embeddings.word_embeddings"
    shape = dense[f"{table}.weight"].shape
    assert final[f"{table}.codes"].shape == (shape[0], rank_of(shape, 0.7))
    assert metrics["stages"]["final"]["accuracy"] > 0.8
    assert metrics["params"]["final"]["total"] == sum(x.size for x in final.values())
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "most accurate for the most frequent tokens" in card
    assert "Nothing else is compressed." in card
    assert table not in metrics["ranks"]
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["embeddings"] == 0.7


def test_refused_before_any_work(tiny: Tiny, tmp_path: Path) -> None:
    for value in (0, -1, 1.5, float("nan")):
        with pytest.raises(SettingError, match="a whole number, or a share"):
            make_settings("m", task="sst2", out=tmp_path, embeddings=value)
    with pytest.raises(LpafError, match="would not make the .* table smaller"):
        compress(**tiny.chosen(tmp_path / "large", embeddings=1000))
    assert not (tmp_path / "large").exists()
