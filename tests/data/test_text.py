import csv
import math
from itertools import islice

import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import (
    encode_text,
    load_tokenizer,
    perplexity,
    sample_and_end,
    sample_blocks,
    text,
    text_batches,
    text_tokens,
    text_windows,
    train_batches,
)
from tests.data.tokenizers_of_decoders import WORDS, gpt2, llama2, llama3

NOTE = "The movie...\r\n\r\n  wasn't_\n good.\n\n\n(1234567)  films — Café 東京🎬\t\n" + WORDS


@pytest.fixture(params=[gpt2, llama3, llama2], ids=lambda make: make.__name__)
def folder(request, tmp_path):
    return request.param(tmp_path / "m")


def stream(*arguments):
    return np.concatenate(list(text_tokens(*arguments))).tolist()


def by_the_library(folder, texts, special=True):
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [backend.encode(one, add_special_tokens=special).ids for one in texts]


@pytest.mark.parametrize(
    ("make", "pad", "end", "first"), [(gpt2, 0, 0, []), (llama3, 0, 1, [0]), (llama2, 0, 2, [1])]
)
def test_tokenizers_of_decoders(tmp_path, make, pad, end, first):
    folder = make(tmp_path / "m")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_id, tokenizer.end_id) == (pad, end)
    [plain] = by_the_library(folder, [NOTE], special=False)
    assert tokenizer.tokens([NOTE]) == [plain]
    assert tokenizer.tokens([NOTE], special=True) == [[*first, *plain]]
    # a classifier's rows: the first token counts towards the length
    [(ids, _)] = tokenizer.encode([NOTE], max_length=9)
    assert ids == [*first, *plain][:9]
    [(ids, _)] = tokenizer.encode(["good"], ["the actors"], max_length=40)
    assert ids[: len(first)] == first
    assert tokenizer.tokens([NOTE]) == [plain]  # no truncation is left behind


def test_a_single_text_has_the_tokens_of_its_tokenizer(folder, tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(NOTE.encode())
    [expected] = by_the_library(folder, [NOTE])
    assert stream(load_tokenizer(folder), path) == expected
    assert stream(load_tokenizer(folder), [NOTE]) == expected


def test_the_end_of_text_token_stands_between_texts(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    texts = ["the movie", "was good,", "12"]
    one, two, three = by_the_library(folder, texts)
    expected = [*one, tokenizer.end_id, *two, tokenizer.end_id, *three]
    assert stream(tokenizer, texts) == expected
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["note", "label"], *([text, 1] for text in texts), ["", 1]])
    assert stream(tokenizer, tmp_path / "t.csv", "note") == expected


def test_a_tokenizer_that_ends_texts_itself_is_not_ended_twice(tmp_path):
    from tokenizers import Tokenizer, processors

    folder = llama2(tmp_path / "m")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    texts = ["the movie", "was good"]
    assert stream(load_tokenizer(folder), texts) == [
        i for ids in by_the_library(folder, texts) for i in ids
    ]


@pytest.mark.parametrize("make", [gpt2, llama3])
def test_pieces_of_a_file_have_the_tokens_of_the_whole(tmp_path, monkeypatch, make):
    folder, path = make(tmp_path / "m"), tmp_path / "t.txt"
    whole = NOTE * 7
    path.write_bytes(whole.encode())
    [expected] = by_the_library(folder, [whole])
    for size in (*range(60, 80), 256):
        monkeypatch.setattr(text, "PIECE", size)
        pieces = list(text_tokens(load_tokenizer(folder), path))
        assert len(pieces) > 3
        assert np.concatenate(pieces).tolist() == expected


def test_no_more_of_a_file_is_read_than_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "PIECE", 1000)
    path = tmp_path / "t.txt"
    path.write_bytes(WORDS.encode() * 1000 + b"\xff")
    windows = text_windows(text_tokens(load_tokenizer(gpt2(tmp_path / "m")), path), 16)
    assert len(list(islice(windows, 100))) == 100
    with pytest.raises(LpafError, match="is not UTF-8"):
        list(windows)


def test_a_line_without_a_break_is_not_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "PIECE", 50)
    path = tmp_path / "t.txt"
    path.write_text("x" * 1000)
    pieces = list(text_tokens(load_tokenizer(gpt2(tmp_path / "m")), path))
    assert max(len(piece) for piece in pieces) <= 50
    assert sum(len(piece) for piece in pieces) == 1000


def pieces_of(n, cut=7):
    ids = np.arange(n, dtype=np.int32)
    return [ids[i : i + cut] for i in range(0, n, cut)]


def windows_by_the_recipe(n, length, stride):
    """Begin, end and number of targets of each window, as in the documentation of transformers."""
    found, before = [], 0
    for begin in range(0, n, stride):
        end = min(begin + length, n)
        found.append((begin, end, end - before))
        before = end
        if end == n:
            break
    return found


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 23, 40, 41])
@pytest.mark.parametrize("stride", [1, 3, 5, 8])
def test_windows_are_those_of_the_recipe(n, stride):
    found = list(text_windows(pieces_of(n), 8, stride))
    assert [
        (int(window.ids[0]), int(window.ids[-1]) + 1, len(window.ids) - window.first)
        for window in found
    ] == windows_by_the_recipe(n, 8, stride)


@pytest.mark.parametrize("stride", [3, 8])
def test_each_token_counts_once_but_those_with_nothing_before_them(stride):
    batches = list(text_batches(text_windows(pieces_of(41), 8, stride), 4, 8, pad_id=99))
    counted = np.concatenate([b["input_ids"][b["weight"] > 0] for b in batches])
    alone = {0} if stride < 8 else {0, 8, 16, 24, 32, 40}
    assert sorted(counted.tolist()) == sorted(set(range(41)) - alone)
    for batch in batches:
        assert {key: str(value.dtype) for key, value in batch.items()} == {
            "input_ids": "int32",
            "attention_mask": "int32",
            "token_type_ids": "int32",
            "weight": "float32",
        }
        assert {value.shape for value in batch.values()} == {(4, 8)}
        assert (batch["weight"][:, 0] == 0).all()
        # a filling row with nothing to attend to would turn the softmax into NaN
        assert batch["attention_mask"].sum(axis=1).min() > 0
        assert ((batch["input_ids"] == 99) == (batch["attention_mask"] == 0)).all()


def fake_log_likelihood(ids):
    """Of every token but the first, given those before it: any function of the row will do."""
    ids = ids.astype(np.float64)
    return -1.5 + np.sin(3 * ids[1:] + 0.1 * np.cumsum(ids)[:-1])


def recipe(n, length, stride):
    total, tokens = 0.0, 0
    for begin, end, new in windows_by_the_recipe(n, length, stride):
        likelihood = fake_log_likelihood(np.arange(begin, end))[-new:]
        if not likelihood.size:
            continue
        total += -likelihood.mean() * (new - 1)
        tokens += new - 1
    return math.exp(total / tokens)


def ours(n, length, stride):
    total = tokens = 0.0
    for batch in text_batches(text_windows(pieces_of(n), length, stride), 3, length, 0):
        for ids, weight in zip(batch["input_ids"], batch["weight"], strict=True):
            total += float((fake_log_likelihood(ids) * weight[1:]).sum())
            tokens += float(weight.sum())
    return perplexity(total, tokens)


def test_perplexity_is_that_of_the_recipe():
    assert ours(1000, 64, 64) == pytest.approx(recipe(1000, 64, 64), rel=1e-12)
    assert ours(1000, 64, 32) == pytest.approx(recipe(1000, 64, 32), rel=5e-3)
    assert abs(ours(1000, 64, 32) / ours(1000, 64, 64) - 1) > 5e-3  # or this shows nothing


def test_perplexity_worked_by_hand():
    assert perplexity(4 * math.log(1 / 50), 4) == pytest.approx(50)
    assert perplexity(-1e9, 2) == math.inf
    with pytest.raises(ValueError, match="0 tokens have no perplexity"):
        perplexity(-1.0, 0)


def test_a_sample_is_of_whole_blocks_and_follows_the_seed():
    blocks = np.arange(400, dtype=np.int32).reshape(50, 8)
    known = {tuple(row) for row in blocks.tolist()}
    ten = sample_blocks(pieces_of(405), 8, 10, seed=1)
    assert (ten.shape, ten.dtype) == ((10, 8), np.int32)
    assert {tuple(row) for row in ten.tolist()} < known
    assert ten[:, 0].tolist() == sorted(ten[:, 0].tolist())
    np.testing.assert_array_equal(ten, sample_blocks(pieces_of(405, 31), 8, 10, seed=1))
    more = sample_blocks(pieces_of(405), 8, 20, seed=1)
    assert set(ten[:, 0].tolist()) < set(more[:, 0].tolist())
    assert set(ten[:, 0].tolist()) != set(sample_blocks(pieces_of(405), 8, 10)[:, 0].tolist())
    for count in (50, 51):
        np.testing.assert_array_equal(sample_blocks(pieces_of(405), 8, count), blocks)


@pytest.mark.parametrize(("blocks", "end"), [(1, 0), (2, 1), (9, 1), (50, 5), (400, 6)])
def test_the_end_of_a_stream_is_kept_apart(blocks, end):
    whole = np.arange(8 * blocks, dtype=np.int32).reshape(blocks, 8)
    before, last = sample_and_end(pieces_of(8 * blocks + 3), 8, 1000, 0, 6)
    np.testing.assert_array_equal(before, whole[: blocks - end])
    np.testing.assert_array_equal(last, whole[blocks - end :])
    few, same = sample_and_end(pieces_of(8 * blocks + 3), 8, 4, 1, 6)
    np.testing.assert_array_equal(few, sample_blocks([whole[: blocks - end].ravel()], 8, 4, 1))
    np.testing.assert_array_equal(same, last)


def test_a_sample_is_drawn_evenly():
    drawn = [sample_blocks(pieces_of(400), 8, 5, seed=seed)[:, 0] // 8 for seed in range(200)]
    counts = np.bincount(np.concatenate(drawn), minlength=50)
    # 20 ± 4.2 each: five standard deviations
    assert counts.min() > 0
    assert counts.max() < 41


def test_training_batches_of_text(tmp_path):
    folder, path = gpt2(tmp_path / "m"), tmp_path / "t.txt"
    path.write_text(WORDS * 40)
    [everything] = by_the_library(folder, [WORDS * 40])
    encoded = encode_text(load_tokenizer(folder), path, 24)
    assert len(encoded) == len(everything) // 24
    assert np.concatenate(encoded.ids).tolist() == everything[: 24 * len(encoded)]
    batch = train_batches(encoded, 4, seed=0, epoch=0)[0]
    assert batch["input_ids"].shape == (4, 24)
    assert batch["labels"].shape == (4, 0)
    assert batch["attention_mask"].all()


def test_what_cannot_be_cut_is_refused(tmp_path):
    tokenizer = load_tokenizer(gpt2(tmp_path / "m"))
    for length, stride in ((1, None), (8, 9), (8, 0)):
        with pytest.raises(LpafError, match="the stride from 1 to the length"):
            text_windows([], length, stride)
    with pytest.raises(LpafError, match="does not fill one sequence of 31 tokens"):
        sample_blocks(pieces_of(30), 31, 4)
    with pytest.raises(LpafError, match="a sample of 0 blocks"):
        sample_blocks(pieces_of(30), 8, 0)
    with pytest.raises(LpafError, match="does not fill one block of 99 tokens"):
        encode_text(tokenizer, ["the"], 99)
    with pytest.raises(LpafError, match=r"none\.txt does not exist"):
        list(text_tokens(tokenizer, tmp_path / "none.txt"))
    (tmp_path / "t.csv").write_text("a,b\nx,y\n")
    with pytest.raises(LpafError, match="no column 'sentence'"):
        list(text_tokens(tokenizer, tmp_path / "t.csv"))
