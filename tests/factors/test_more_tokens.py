"""Tokens that are added to a finished model, in every form that its table may have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import lpaf_jax
from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.factorization import FORMS, factorize_embeddings
from lpaf_jax.factors import LOW_RANK
from lpaf_jax.models import layer_at
from lpaf_jax.models.families import FAMILIES
from tests.factors.folders import twin_logits
from tests.tiny import HIDDEN, WORDS, Tiny
from tests.tiny_decoder import VOCABULARY, write_decoder

VECTORS = {
    f"new{i}": row
    for i, row in enumerate(np.random.default_rng(3).normal(size=(3, 32)).astype(np.float32))
}
NEW = np.stack(list(VECTORS.values())).astype(np.float64)


# Rows of the others share all their numbers.
@pytest.mark.parametrize("form", ["dense", *(form for form in FORMS if form != "kronecker-sums")])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_new_rows_are_the_nearest(form: str, family: str, tiny: Tiny, tmp_path: Path) -> None:
    if family == "bert":
        source, words, labels = tiny.model, len(WORDS), ["no", "yes"]
        model = load_model(source, num_labels=2)
    else:
        source, words, labels = write_decoder(tmp_path / "gpt2", "gpt2"), VOCABULARY, None
        model = load_model(source)
    path, place = FAMILIES[family].table, tmp_path / "before"
    if form != "dense":
        factorize_embeddings(model, path, 0.51, np.ones(words, int), form=form)
    save_model(model, place, source=source, label_names=labels, card="# Card\n")
    lpaf_jax.add_tokens(str(place), str(tmp_path / "after"), VECTORS)
    table = layer_at(load_model(tmp_path / "after"), path)
    rows = np.asarray(table(np.arange(words + 3)), np.float64)
    before = np.asarray(layer_at(model, path)(np.arange(words)))
    np.testing.assert_allclose(rows[:words], before, atol=1e-6)
    if form == "dense":
        expected = NEW
    elif form == "low-rank":
        basis = np.asarray(table.basis[...], np.float64)
        expected = NEW @ np.linalg.pinv(basis) @ basis
    elif form == "kronecker":
        pattern = np.asarray(table.patterns[...], np.float64)[0]
        pairs = NEW.reshape(3, -1, 2)
        expected = (pairs @ pattern / (pattern @ pattern))[..., None] * pattern
    else:
        u, s, vt = np.linalg.svd(NEW.reshape(-1, 4, 8))
        expected = (u[:, :, :1] * s[:, None, :1]) @ vt[:, :1]
    np.testing.assert_allclose(rows[words:], expected.reshape(3, 32), atol=1e-5)
    tokenizer = Tokenizer.from_file(str(tmp_path / "after" / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in VECTORS] == [words, words + 1, words + 2]
    if family == "gpt2":
        pytest.importorskip("torch")
        logits = twin_logits(tmp_path / "after")
        assert logits.shape[-1] == words + 3
        np.testing.assert_allclose(logits[..., :words], twin_logits(place), atol=1e-5)


def test_what_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    model, place = load_model(tiny.model, num_labels=2), tmp_path / "model"
    save_model(model, place, source=tiny.model, label_names=["no", "yes"], card="# Card\n")
    known = next(iter(WORDS))
    for vectors, message in (
        ({}, "there are no tokens to add"),
        ({known: np.ones(HIDDEN)}, "is already a token"),
        (
            {"new": np.ones(HIDDEN + 1)},
            rf"of {HIDDEN + 1}.*give {HIDDEN} finite numbers|give {HIDDEN}",
        ),
        ({"new": np.full(HIDDEN, np.nan)}, f"or is not finite: give {HIDDEN} finite numbers"),
    ):
        given: dict[str, Any] = vectors
        with pytest.raises(LpafError, match=message):
            lpaf_jax.add_tokens(place, tmp_path / "out", given)
    llama = write_decoder(tmp_path / "llama", "llama", tie_word_embeddings=False)
    with pytest.raises(LpafError, match="has an untied next-token head"):
        lpaf_jax.add_tokens(llama, tmp_path / "out", {"new": np.ones(32)})
    tokens = json.loads((place / "tokenizer.json").read_text())
    tokens["model"]["vocab"].pop(list(tokens["model"]["vocab"])[-1])
    (place / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(LpafError, match="tokens but the table has"):
        lpaf_jax.add_tokens(place, tmp_path / "out", {"new": np.ones(HIDDEN)})
    assert not (tmp_path / "out").exists()
    table, sums = FAMILIES["bert"].table, tmp_path / "sums"
    factorize_embeddings(model, table, 0.51, np.ones(len(WORDS), int), form="kronecker-sums")
    save_model(model, sums, source=tiny.model, label_names=["no", "yes"], card="# Card\n")
    with pytest.raises(LpafError, match="cannot get more of them: add the tokens to the dense"):
        lpaf_jax.add_tokens(sums, tmp_path / "out", {"new": np.ones(HIDDEN)})
    with pytest.raises(TypeError, match="low_rank is not a kind of embedding table"):
        LOW_RANK.rows_for({}, {}, np.ones((1, 2)))
