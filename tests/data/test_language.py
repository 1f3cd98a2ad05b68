"""A text cut into splits and windows: nothing shared, nothing lost but the tails."""

import csv
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import Tokenizer, load_task, load_tokenizer, pack, text_tokens, train_batches
from lpaf_jax.data.language import pieces, sample, split_text
from tests.data.tokenizers_of_decoders import gpt2

SHARES = (0.7, 0.1, 0.2)


def paragraphs(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [
        "\n".join(" ".join(f"w{i}" for i in random.integers(0, 999, 6)) for _ in range(lines))
        for lines in random.integers(1, 4, count)
    ]


def written(path: Path, found: list[str]) -> Path:
    path.write_text("\n\n".join(found) + "\n", newline="")
    return path


def held(path: Path) -> list[list[str]]:
    """The paragraphs of each split."""
    return [
        [p for text in split.texts for p in text.split("\n\n")]
        for split in split_text(path, SHARES)
    ]


def test_pieces_are_paragraphs_and_together_the_text() -> None:
    text = "\n \na\nb\n\n \nc\r\n\r\n" + "".join(f"line {i}\n" for i in range(70)) + "\n\n"
    found = pieces(text)
    assert "".join(found) == text
    assert found[:2] == ["\n \na\nb\n\n \n", "c\r\n\r\n"]
    assert [piece.count("line") for piece in found[2:]] == [32, 32, 6]
    assert pieces("\n \n") == []
    assert pieces("one") == ["one"]


def test_splits_share_no_paragraph_and_hold_them_all(tmp_path: Path) -> None:
    all_of_them = paragraphs(400)
    splits = held(written(tmp_path / "t.txt", all_of_them))
    assert sorted(p for split in splits for p in split) == sorted(all_of_them)
    sets = [set(split) for split in splits]
    assert all(not a & b for a, b in combinations(sets, 2))
    assert 240 < len(splits[0]) < 320
    assert 20 < len(splits[1]) < 60
    assert 50 < len(splits[2]) < 110


def test_what_is_put_before_or_after_a_text_moves_nothing(tmp_path: Path) -> None:
    before = held(written(tmp_path / "t.txt", paragraphs(100)))
    more = paragraphs(300, seed=1)
    after = held(written(tmp_path / "u.txt", [*more[:50], *paragraphs(100), *more[50:]]))
    for old, new in zip(before, after, strict=True):
        assert set(old) <= set(new)
        assert [p for p in new if p in set(old)] == old


def test_equal_paragraphs_share_a_split_and_neighbours_stay_one_text(tmp_path: Path) -> None:
    path = written(tmp_path / "t.txt", paragraphs(50) * 2)
    splits = held(path)
    assert all(sorted(split) == sorted([*dict.fromkeys(split)] * 2) for split in splits)
    texts = split_text(path, SHARES)[0].texts
    whole = path.read_text()
    assert any("\n\n" in text for text in texts)
    assert all(text in whole for text in texts)
    assert all(text == text.strip("\n") for text in texts)


def test_rows_of_a_table_are_split_by_their_text(tmp_path: Path) -> None:
    rows = paragraphs(200)
    for name, column in (("t.csv", "text"), ("u.csv", "body")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([[column, "label"], *([row, "x"] for row in rows)])
    task = load_task(str(tmp_path / "t.csv"), language_model=True)
    assert (task.kind, task.metrics, task.label_names) == ("language", ("perplexity",), [])
    splits = [split.texts for split in (task.train, task.validation, task.test)]
    assert sorted(row for split in splits for row in split) == sorted(rows)
    again = load_task(str(tmp_path / "u.csv"), language_model=True, text_column="body")
    assert again.test.texts == task.test.texts
    # As paragraphs of a text they are where they are as rows.
    parts = held(written(tmp_path / "t.txt", rows))
    assert parts == splits
    with pytest.raises(LpafError, match="has no column 'text'"):
        load_task(str(tmp_path / "u.csv"), language_model=True)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(gpt2(tmp_path / "gpt2"))


def test_windows_are_whole_and_lose_the_tail_alone(tokenizer: Tokenizer) -> None:
    texts = paragraphs(60)
    stream = np.concatenate(list(text_tokens(tokenizer, texts)))
    assert tokenizer.end_id is not None
    assert (stream == tokenizer.end_id).sum() == 59
    packed = pack(tokenizer, texts, 16)
    assert {len(ids) for ids in packed.ids} == {16}
    assert packed.left_out == len(stream) % 16 > 0
    np.testing.assert_array_equal(np.concatenate(packed.ids), stream[: len(stream) // 16 * 16])
    for batch in train_batches(packed, 4, seed=0, epoch=0):
        assert batch["input_ids"].shape == (4, 16)
        assert batch["attention_mask"].all()
        assert batch["weight"].all()
    with pytest.raises(
        LpafError, match=r"parts of the text .* tokens, fewer than a window of 4096"
    ):
        pack(tokenizer, texts[:1], 4096)


def test_a_limit_takes_windows_and_a_larger_one_adds_to_it(tokenizer: Tokenizer) -> None:
    packed = pack(tokenizer, paragraphs(60), 16)
    few, more = ([ids.tobytes() for ids in sample(packed, n).ids] for n in (5, 12))
    order = [ids.tobytes() for ids in packed.ids]
    assert (len(few), len(more)) == (5, 12)
    assert set(few) < set(more)
    assert [ids for ids in order if ids in few] == few
    assert len(sample(packed, 10**6)) == len(packed)
    # The tokens alone decide, not where they stand.
    turned = replace(packed, ids=packed.ids[::-1])
    assert {ids.tobytes() for ids in sample(turned, 5).ids} == set(few)


@pytest.mark.parametrize(
    ("name", "chosen", "told"),
    [
        ("t.txt", {"label_column": "label"}, r"label.*language model reads text without labels"),
        ("t.txt", {"regression": True}, r"regression.*reads text without labels"),
        ("t.txt", {"text_column": "text"}, "a plain text has no columns"),
        ("t.csv", {"language_model": True, "pair_column": "b"}, "text without labels"),
        ("t.txt", {"data": "elsewhere"}, "a file has no other copy"),
        ("imdb", {"language_model": True}, "works only for files; imdb is a task with labels"),
        ("none.txt", {}, "none.txt does not exist"),
        ("one.txt", {}, r"empty \w+ split .*; it needs more paragraphs or rows"),
        ("packed.txt", {}, r"packed.txt is packed \(gzip\)"),
    ],
)
def test_what_makes_no_language_task_is_told(
    tmp_path: Path, name: str, chosen: dict[str, Any], told: str
) -> None:
    written(tmp_path / "t.txt", paragraphs(100))
    (tmp_path / "t.csv").write_text("text\na\n")
    (tmp_path / "one.txt").write_text("one line\n")
    (tmp_path / "packed.txt").write_bytes(b"\x1f\x8b\x08\0")
    with pytest.raises(LpafError, match=told):
        load_task(name if name == "imdb" else str(tmp_path / name), **chosen)
