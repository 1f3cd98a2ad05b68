"""Tables of embeddings as Kronecker products and as tensor trains: here, in PyTorch, and dense."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.inspection import inspect_model
from lpaf_jax.export import export_stablehlo
from lpaf_jax.factorization import FORMS, factorize_embeddings, table_record
from lpaf_jax.factors import KINDS, kronecker_sum_embedding
from lpaf_jax.models import layer_at
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.stages import Factorize
from lpaf_jax.stages.planned import table_size
from tests.factors.folders import IDS, config_of, factorize, logits
from tests.factors.test_folders import (
    assert_encoder_read_everywhere,
    assert_read_everywhere,
    assert_same_when_dense,
)
from tests.tiny import WORDS, Tiny
from tests.tiny_decoder import VOCABULARY, write_decoder

COUNTS = 1 + np.random.default_rng(4).zipf(1.3, VOCABULARY) % 100
HIDDEN = 32
# What is left of 32 numbers a row: 16 and a pattern of 2; ten terms of 10 × 4 and 5 × 8 numbers for
# all fifty; two cores 4 · 8 of rank 1.
RECORDS: dict[str, dict[str, Any]] = {
    "kronecker": {"kind": "kronecker_embedding", "rank": 1, "pattern": 2},
    "kronecker-sums": {
        "kind": "kronecker_sum_embedding",
        "rank": 10,
        "rows": VOCABULARY,
        "fine": [5, 8],
    },
    "trains": {"kind": "train_embedding", "rank": 1, "digits": [4, 8]},
}
NUMBERS = {
    "kronecker": 16 * VOCABULARY + 2,
    "kronecker-sums": 10 * (10 * 4 + 5 * 8),
    "trains": 12 * VOCABULARY,
}
FLOP = {"kronecker": 2 * HIDDEN, "kronecker-sums": 2 * 10 * HIDDEN, "trains": 2 * 4 * 8}
TIED = {"gpt2": True, "llama": False}


@pytest.fixture(scope="module", params=list(RECORDS))
def form(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(form: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place, found = tmp_path_factory.mktemp(form), {}
    for family, tied in TIED.items():
        dense = write_decoder(place / f"{family}_dense", family, tie_word_embeddings=tied)
        model = load_model(dense)
        factorize(model)
        factorize_embeddings(model, FAMILIES[family].table, 0.51, COUNTS, form=form)
        found[family] = place / family
        save_model(model, place / family, source=dense, label_names=None, card="# Card\n")
        np.save(place / family / "expected.npy", logits(model))
    return found


def table_of(folder: Path, family: str) -> np.ndarray:
    table = layer_at(load_model(folder), FAMILIES[family].table)
    return np.asarray(table(jnp.arange(VOCABULARY)), np.float64)


def test_every_row_is_the_nearest_of_its_form(folders: dict[str, Path], form: str) -> None:
    for family, folder in folders.items():
        t = table_of(folder.with_name(f"{family}_dense"), family)
        if form == "trains":
            u, s, vt = np.linalg.svd(t.reshape(-1, 4, 8))
            expected = (u[:, :, :1] * s[:, None, :1]) @ vt[:, :1]
        elif form == "kronecker-sums":
            blocks = t.reshape(10, 5, 4, 8).transpose(0, 2, 1, 3).reshape(40, 40)
            u, s, vt = np.linalg.svd(blocks)
            near = ((u[:, :10] * s[:10]) @ vt[:10]).reshape(10, 4, 5, 8)
            expected = near.transpose(0, 2, 1, 3)
        else:
            pairs = t.reshape(VOCABULARY, 16, 2)
            _, vectors = np.linalg.eigh(np.einsum("v,vij,vik->jk", COUNTS * 1.0, pairs, pairs))
            pattern = vectors[:, -1]
            expected = (pairs @ pattern)[..., None] * pattern
        np.testing.assert_allclose(table_of(folder, family), expected.reshape(t.shape), atol=1e-4)


def test_what_is_written_is_read_here_and_in_pytorch(folders: dict[str, Path], form: str) -> None:
    assert_read_everywhere(folders)
    for family, folder in folders.items():
        assert config_of(folder)["lpaf_factors"][FAMILIES[family].table] == RECORDS[form]


def test_dense_it_is_the_same_model(folders: dict[str, Path], tmp_path: Path) -> None:
    assert_same_when_dense(folders, tmp_path)


def test_a_tied_head_is_in_a_program_for_any_number_of_tokens(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    export_stablehlo(folders["gpt2"], tmp_path / "out")
    program = jax.export.deserialize(bytearray((tmp_path / "out/model.stablehlo").read_bytes()))
    ids = IDS.astype(np.int32)
    given = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    found = program.call(load_file(tmp_path / "out/weights.safetensors"), given)
    np.testing.assert_allclose(found, np.load(folders["gpt2"] / "expected.npy"), atol=1e-4)


def test_inspect_counts_them(folders: dict[str, Path], form: str) -> None:
    for folder in folders.values():
        found = inspect_model(folder)["matrices"]
        [table] = [each for each in found if each["kind"] == RECORDS[form]["kind"]]
        assert table["parameters"] == NUMBERS[form]
        assert table["flop"] == FLOP[form]


def test_an_encoder_is_read_here_and_in_pytorch(tiny: Tiny, tmp_path: Path, form: str) -> None:
    model, words = load_model(tiny.model, num_labels=2), len(WORDS)
    factorize_embeddings(model, FAMILIES["bert"].table, 0.6, np.ones(words, int), form=form)
    out = tmp_path / "small"
    save_model(model, out, source=tiny.model, label_names=["no", "yes"], card="# Card\n")
    assert_encoder_read_everywhere(model, words, out)


@pytest.mark.parametrize("digits", [[4, 8], [2, 4, 4], [2, 2, 2, 4]])
def test_trains_of_any_length(digits: list[int]) -> None:
    torch = pytest.importorskip("torch")
    from lpaf_jax.factors.train_embedding_torch import train_embedding

    random, kind = np.random.default_rng(0), KINDS["train_embedding"]
    record = {"kind": "train_embedding", "rank": 3, "digits": digits}
    sizes = kind.shapes(record, (11, HIDDEN))
    factors = {leaf: random.normal(size=size).astype(np.float32) for leaf, size in sizes.items()}
    row = factors["core_1"][5]
    for leaf in list(sizes)[1:]:
        row = np.tensordot(row, factors[leaf][5], axes=1)
    expected = kind.dense(factors)
    np.testing.assert_allclose(expected[5], row.reshape(-1), rtol=1e-4)
    layer: Any = kind.layer({leaf: jnp.asarray(x) for leaf, x in factors.items()}, None, record)
    assert kind.record(layer) == record
    index = np.array([[5, 1], [10, 5]])
    np.testing.assert_allclose(layer(jnp.asarray(index)), expected[index], rtol=1e-5, atol=1e-5)
    x = random.normal(size=(2, 3, HIDDEN)).astype(np.float32)
    np.testing.assert_allclose(layer.scores(jnp.asarray(x)), x @ expected.T, rtol=1e-4, atol=1e-4)
    theirs = train_embedding(torch.nn.Embedding(11, HIDDEN), record)
    theirs.load_state_dict({leaf: torch.tensor(x) for leaf, x in factors.items()})
    with torch.no_grad():
        found = theirs(torch.tensor(index)).numpy()
    np.testing.assert_allclose(found, expected[index], rtol=1e-5, atol=1e-5)
    flop = jax.jit(layer.__call__).lower(jnp.zeros(1, int)).cost_analysis()["flops"]
    assert kind.flop(record, (11, HIDDEN)) == pytest.approx(flop, abs=40)


def test_a_token_of_gpt2_gathers_few_numbers_of_each_term() -> None:
    """Not the 769 of the grid whose term is smallest."""
    record = table_record("kronecker-sums", (50257, 768), 0.5)
    sizes = KINDS["kronecker_sum_embedding"].shapes(record, (50257, 768))
    (v1, _, h1), (v2, _, h2) = sizes["coarse"], sizes["fine"]
    assert ((v1, h1), (v2, h2)) == ((258, 24), (195, 32))


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("low-rank", "(rank 9)"),
        ("kronecker-sums", "(rank 10 of 9×6 rows, 1 of them padding)"),
    ],
)
def test_before_the_work_a_line_says_what_the_table_becomes(form: Any, words: str) -> None:
    assert table_size(Factorize(embeddings=0.5, embeddings_as=form), (53, 32)).endswith(words)


@pytest.mark.parametrize("rows", [47, 50, 53])
def test_sums_have_no_row_of_no_token(rows: int) -> None:
    """At full rank they are the table, whatever was added to it to make a grid."""
    torch = pytest.importorskip("torch")
    from lpaf_jax.factors.kronecker_sum_embedding_torch import (
        KroneckerSumEmbeddingHead,
        kronecker_sum_embedding,
    )

    random, kind = np.random.default_rng(rows), KINDS["kronecker_sum_embedding"]
    table = random.normal(size=(rows, HIDDEN)).astype(np.float32)
    record = table_record("kronecker-sums", (rows, HIDDEN), 0.9)
    v2, h2 = record["fine"]
    record["rank"] = min(v2 * h2, -(-rows // v2) * HIDDEN // h2)
    solved = FORMS["kronecker-sums"].solve(jnp.asarray(table), record, np.ones(rows), None)
    factors = {leaf: np.asarray(x) for leaf, x in solved.items()}
    assert {leaf: x.shape for leaf, x in factors.items()} == kind.shapes(record, (rows, HIDDEN))
    np.testing.assert_allclose(kind.dense(factors)[:rows], table, atol=1e-5)
    assert rows % v2 or rows == 50
    layer: Any = kind.layer(solved, None, record)
    assert kind.record(layer) == record
    index = np.array([[0, rows - 1], [7, rows // 2]])
    np.testing.assert_allclose(layer(jnp.asarray(index)), table[index], atol=1e-5)
    padding = -rows % v2
    said = f"{record['rank']} of {-(-rows // v2)}×{v2} rows"
    assert kind.summary(record) == said + (f", {padding} of them padding" if padding else "")
    x = random.normal(size=(2, 3, HIDDEN)).astype(np.float32)
    np.testing.assert_allclose(layer.scores(jnp.asarray(x)), x @ table.T, atol=1e-4)
    theirs = kronecker_sum_embedding(torch.nn.Embedding(rows, HIDDEN), record)
    theirs.load_state_dict({leaf: torch.tensor(x) for leaf, x in factors.items()})
    with torch.no_grad():
        np.testing.assert_allclose(theirs(torch.tensor(index)), table[index], atol=1e-5)
        scores = KroneckerSumEmbeddingHead(theirs)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(scores, x @ table.T, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 60])
def test_sums_are_differentiated_as_the_table_is(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tokens at a time, the factors of the head in turn or its rows rebuilt."""
    monkeypatch.setattr(kronecker_sum_embedding, "_GATHERED", 7 * 10 * (4 + 8))
    random, kind = np.random.default_rng(tokens), KINDS["kronecker_sum_embedding"]
    record = RECORDS["kronecker-sums"]
    factors = {
        leaf: jnp.asarray(random.normal(size=size), jnp.float32)
        for leaf, size in kind.shapes(record, (VOCABULARY, HIDDEN)).items()
    }
    index = jnp.asarray(random.integers(0, VOCABULARY, (tokens, 2)))
    weights = jnp.asarray(random.normal(size=(tokens, 2, HIDDEN)), jnp.float32)
    states = jnp.asarray(random.normal(size=(tokens, HIDDEN)), jnp.float32)

    def of_layer(factors: Any) -> Any:
        layer: Any = kind.layer(factors, None, record)
        return jnp.sum(weights * layer(index)) + jnp.sum(jnp.tanh(layer.scores(states)))

    def of_table(factors: Any) -> Any:
        table = kind.dense(factors)
        return jnp.sum(weights * table[index]) + jnp.sum(jnp.tanh(states @ table.T))

    (value, found), (dense, expected) = (
        jax.value_and_grad(f)(factors) for f in (of_layer, of_table)
    )
    np.testing.assert_allclose(value, dense, rtol=1e-4)
    for leaf, gradient in expected.items():
        np.testing.assert_allclose(found[leaf], gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("form", "shape", "width", "message"),
    [
        (
            "kronecker",
            (50, 32),
            128,
            "128 is a width, but --embeddings-as kronecker takes the share",
        ),
        ("trains", (50, 32), 128, "128 is a width"),
        (
            "kronecker-sums",
            (50, 32),
            0.01,
            "for a Kronecker product of 10 × 4 and 5 × 8, 80 parameters of 1600: give more",
        ),
        ("kronecker", (50, 31), 0.5, None),
        ("kronecker", (50, 32), 0.01, "is too small for a Kronecker product of the 50 × 32 table"),
        ("trains", (50, 32), 0.2, "is too small for a tensor train of 4 · 8"),
        (
            "trains",
            (50, 31),
            0.5,
            "splits the 31 numbers of a token in two, but 31 is prime",
        ),
    ],
)
def test_sizes(form: str, shape: tuple[int, int], width: float, message: str | None) -> None:
    if message is None:
        assert table_record(form, shape, width)["pattern"] == 31
        return
    with pytest.raises(LpafError, match=message):
        table_record(form, shape, width)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("kronecker_embedding", {"pattern": 3}, "has patterns of 3, which does not divide 32"),
        ("kronecker_embedding", {"pattern": None}, "has patterns of None"),
        ("kronecker_sum_embedding", {"rows": float(VOCABULARY)}, "has 50.0 rows, where"),
        ("kronecker_sum_embedding", {"rows": 9}, f"has 9 rows, where the table has {VOCABULARY}"),
        (
            "kronecker_sum_embedding",
            {"rows": VOCABULARY, "fine": [5]},
            r"fine \[5\], which must be two",
        ),
        (
            "kronecker_sum_embedding",
            {"rows": VOCABULARY, "fine": [5, 3]},
            "rows of 3, which does not divide 32",
        ),
        ("train_embedding", {"digits": [4, 4]}, r"digits \[4, 4\], whose product is not 32"),
        ("train_embedding", {"digits": [True, 32]}, "must be whole numbers"),
        ("train_embedding", {"digits": None}, "must be whole numbers"),
    ],
)
def test_a_record_that_does_not_fit(kind: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KINDS[kind].shapes({"rank": 1} | changed, (VOCABULARY, HIDDEN))
