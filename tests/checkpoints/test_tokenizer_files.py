"""Tokenizers of folders whose files disagree, beside `AutoTokenizer` of transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, trainers
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre
from tokenizers import processors as post
from tokenizers.models import BPE, WordLevel, WordPiece
from transformers import AutoTokenizer

from lpaf_jax.checkpoints.tokenizer_files import TOKENIZER_FILES, auto_tokenizer, name_tokenizer
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.data import load_tokenizer

TEXTS = ["The Café was GOOD, <x>wasn't it?", " a good film", "<s>good</s> 東京 [MASK] [SEP]", ""]
PAIRS = ["so IT was", "good <x> film " * 3, "", "Film"]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<mask>", "<|endoftext|>"]
PLAIN = "PreTrainedTokenizerFast"


def wordpiece() -> Tokenizer:
    """As BERT has it, but with case and accents."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "good",
        "film",
        "was",
        "it",
        "so",
        "cafe",
    ]
    words += ["GOOD", "Café", "a", "The", "the", "IT", ",", "?", "東", "京", "##京", "<", "x", ">"]
    made = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = norm.BertNormalizer(
        lowercase=False, strip_accents=False, handle_chinese_chars=False
    )
    made.pre_tokenizer = pre.BertPreTokenizer()
    made.post_processor = post.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def trained(made: Tokenizer, alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*TEXTS, *PAIRS] * 3, trainer)
    return made


def of_bytes() -> Tokenizer:
    """As GPT-2 and RoBERTa have it, with a space before a text and tokens around it."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = pre.ByteLevel(add_prefix_space=True)
    made.post_processor = post.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return trained(made, pre.ByteLevel.alphabet())


def of_marks() -> Tokenizer:
    """As Llama 2 has it, but without the token before a text."""
    made = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre.Metaspace(prepend_scheme="never", split=False)
    return trained(made, [])


FAMILIES: dict[str, tuple[Callable[[], Tokenizer], list[str | None]]] = {
    "bert": (wordpiece, [None, "BertTokenizer", "BertTokenizerFast", PLAIN]),
    "distilbert": (wordpiece, [None, "DistilBertTokenizer", PLAIN]),
    "roberta": (of_bytes, [None, "RobertaTokenizer", PLAIN]),
    "gpt2": (of_bytes, [None, "GPT2TokenizerFast", PLAIN]),
    "qwen2": (of_bytes, [None, PLAIN]),
    "qwen3": (of_bytes, [None, "Qwen2Tokenizer"]),
    "llama": (of_marks, [None, "LlamaTokenizer", PLAIN]),
    "mistral": (of_marks, [None, "LlamaTokenizerFast"]),
}
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
ADDED = {"content": "<x>", "lstrip": True, "rstrip": True, "normalized": False, "special": True}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
    {"add_prefix_space": False},
    {"add_prefix_space": True, "trim_offsets": False},
    NAMED | {"add_bos_token": True, "add_eos_token": True},
    NAMED | {"legacy": True, "add_bos_token": False},
    {"split_special_tokens": True},
    {"extra_special_tokens": ["<x>"]},
    {"additional_special_tokens": ["<x>", "good"]},
    {"truncation_side": "left", "padding_side": "left", "model_max_length": 4},
    {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    {"model_input_names": ["input_ids", "attention_mask"]},
]


def write(folder: Path, kind: str | None, made: Tokenizer, settings: dict[str, Any]) -> Path:
    """A folder of a model, without the model."""
    folder.mkdir()
    write_json(folder / "config.json", {} if kind is None else {"model_type": kind})
    made.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)
    return folder


def rows_of_transformers(folder: Path, pairs: list[str] | None, length: int) -> list[Any]:
    found = AutoTokenizer.from_pretrained(folder)(
        TEXTS, pairs, truncation=True, max_length=length, padding=False
    )
    ids = found["input_ids"]
    return list(zip(ids, found.get("token_type_ids", [[0] * len(row) for row in ids]), strict=True))


def assert_same(folder: Path, of: Path | None = None) -> None:
    tokenizer = load_tokenizer(folder)
    for pairs in (None, PAIRS):
        for length in (6, 60):
            ours = tokenizer.encode(TEXTS, pairs, max_length=length)
            assert ours == rows_of_transformers(of or folder, pairs, length)


@pytest.mark.parametrize("kind", FAMILIES)
def test_settings_override_the_file_as_in_transformers(tmp_path: Path, kind: str) -> None:
    make, classes = FAMILIES[kind]
    for i, settings in enumerate(SETTINGS):
        for j, named in enumerate(classes):
            chosen = settings if named is None else settings | {"tokenizer_class": named}
            assert_same(write(tmp_path / f"{i}-{j}", kind, make(), chosen))


def test_added_tokens_of_other_files_are_taken(tmp_path: Path) -> None:
    for i, (name, values) in enumerate(
        [
            ("tokenizer_config.json", {"added_tokens_decoder": {"25": ADDED}}),
            ("added_tokens.json", {"<x>": 25}),
            ("special_tokens_map.json", {"additional_special_tokens": ["<x>"]}),
        ]
    ):
        folder = write(tmp_path / str(i), "bert", wordpiece(), {})
        write_json(folder / name, values)
        assert_same(folder)
        [(ids, _)] = load_tokenizer(folder).encode(["a<x>a"], max_length=9)
        assert ids == [2, 13, 25, 13, 3]


@pytest.mark.parametrize(("lower", "ids"), [(True, [2, 5, 10, 3]), (False, [2, 11, 12, 3])])
def test_the_case_of_letters_goes_by_the_settings(
    tmp_path: Path, lower: bool, ids: list[int]
) -> None:
    made = wordpiece()
    made.normalizer = norm.BertNormalizer(lowercase=not lower)
    folder = write(tmp_path / "m", "bert", made, {"do_lower_case": lower})
    assert load_tokenizer(folder).encode(["GOOD Café"], max_length=9)[0][0] == ids


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_factorized_folder_gives_the_ids_of_its_source(tmp_path: Path, kind: str) -> None:
    make, classes = FAMILIES[kind]
    for i, named in enumerate(classes):
        settings: dict[str, Any] = {"do_lower_case": False, "add_prefix_space": False}
        settings |= {} if named is None else {"tokenizer_class": named}
        made = make()  # once: not every trainer makes the same of the same texts
        source = write(tmp_path / f"source{i}", kind, made, settings)
        target = write(tmp_path / f"target{i}", f"lpaf_{kind}", made, settings)
        name_tokenizer(source, target)
        assert_same(target)
        assert_same(target, of=source)
        again = shutil.copytree(target, tmp_path / f"again{i}")
        name_tokenizer(target, again)  # of a folder that is factorized already
        assert read_json(again / "tokenizer_config.json") == read_json(
            target / "tokenizer_config.json"
        )


def test_vocabularies_alone_are_read_and_written_whole(tmp_path: Path) -> None:
    made = {"bert": wordpiece(), "gpt2": of_bytes(), "qwen2": of_bytes()}
    for kind, backend in made.items():
        source = tmp_path / kind
        source.mkdir()
        write_json(source / "config.json", {"model_type": kind})
        backend.model.save(str(source))  # vocab.txt, or vocab.json and merges.txt
        assert_same(source)
        target = shutil.copytree(source, tmp_path / f"lpaf_{kind}")
        write_json(target / "config.json", {"model_type": f"lpaf_{kind}"})
        name_tokenizer(source, target)
        assert (target / "tokenizer.json").is_file()
        assert_same(target, of=source)


def test_words_are_not_read_as_pieces_of_words(tmp_path: Path) -> None:
    """GPT2Tokenizer, which transformers takes for the type, would find none of the words."""
    made = Tokenizer(WordLevel({"<unk>": 0, "good": 1, "film": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre.WhitespaceSplit()
    source = write(tmp_path / "m", "gpt2", made, {})
    assert load_tokenizer(source).tokens(["a good film"]) == [[0, 1, 2]]
    target = write(tmp_path / "t", "lpaf_gpt2", made, {})
    name_tokenizer(source, target)
    assert AutoTokenizer.from_pretrained(target)("a good film")["input_ids"] == [0, 1, 2]


TEKKEN = {
    "config": {
        "pattern": r"[a-z]+|\s+",
        "default_vocab_size": 260,
        "default_num_special_tokens": 3,
    },
    "vocab": [{"token_bytes": byte} for byte in ("AA==", "YQ==", "Yg==", "YWI=")],  # \0 a b ab
    "special_tokens": [
        {"rank": i, "token_str": token, "is_control": True}
        for i, token in enumerate(["<unk>", "<s>", "</s>"])
    ],
}


def test_tekken_alone_is_read_and_travels(tmp_path: Path) -> None:
    write_json(tmp_path / "tekken.json", TEKKEN)
    write_json(tmp_path / "config.json", {"model_type": "mistral"})
    assert load_tokenizer(tmp_path).tokens(["abba"]) == [[6, 5, 4]]
    assert "tekken.json" in TOKENIZER_FILES
    write_json(tmp_path / "tekken.json", {"config": {"pattern": "a"}, "vocab": []})
    with pytest.raises(LpafError, match=r"only tekken\.json .*; copy tokenizer\.json there"):
        load_tokenizer(tmp_path)


def test_sentencepiece_alone_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    (tmp_path / "tokenizer.model").write_bytes(b"no such file")
    monkeypatch.setattr("lpaf_jax.checkpoints.tokenizer_files.find_spec", lambda name: None)
    with pytest.raises(LpafError, match=r"it has only tokenizer\.model; install sentencepiece "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", [*FAMILIES, None])
def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path, kind: str | None) -> None:
    """Some classes of transformers would make do with their five special tokens."""
    write_json(tmp_path / "config.json", {"model_type": kind})
    with pytest.raises(LpafError, match=r"has no tokenizer; copy tokenizer\.json there"):
        auto_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(LpafError, match=r"has no tokenizer; copy tokenizer\.json there"):
        auto_tokenizer(tmp_path)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    def message(**files: str) -> str:
        folder = write(tmp_path / str(len(list(tmp_path.iterdir()))), "bert", wordpiece(), {})
        for name, text in files.items():
            (folder / f"{name}.json").write_text(text)
        with pytest.raises(LpafError) as caught:
            auto_tokenizer(folder)
        said = str(caught.value)
        assert "\n" not in said
        return said

    whole = json.loads(wordpiece().to_str())
    for damaged in ("{", "[]", json.dumps(whole | {"model": {"type": "WordPiece", "vocab": {}}})):
        assert "tokenizer.json" in message(tokenizer=damaged)
    assert "tokenizer_config.json cannot be read as JSON" in message(tokenizer_config="{")
    code = json.dumps({"auto_map": {"AutoTokenizer": ["a.B", None]}, "tokenizer_class": "B"})
    assert "tokenizer_config.json" in message(tokenizer_config=code, config="{}")
    token = json.dumps({"pad_token": {"content": "[PAD]"}})
    assert "pad_token has to be" in message(tokenizer_config=token)
    slow = json.dumps({"tokenizer_class": "CanineTokenizer"})
    assert "CanineTokenizer" in message(tokenizer_config=slow)
