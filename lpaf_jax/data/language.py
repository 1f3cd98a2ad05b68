"""A text as a task: split by what it holds, then packed into whole windows of tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data.contents import read_text
from lpaf_jax.data.examples import Examples, unlabelled
from lpaf_jax.data.split import hash_split, position
from lpaf_jax.data.tables import table_texts
from lpaf_jax.data.text import text_tokens, text_windows
from lpaf_jax.data.tokenize import Encoded, Tokenizer

TEXT_SUFFIX = ".txt"
COLUMN = "text"
WINDOW = 128

Windows = TypeVar("Windows", bound=Encoded)

# Paragraphs of hard-wrapped prose are shorter; a text without blank lines is cut here alone.
_LINES = 32


@dataclass(frozen=True)
class Packed(Encoded):
    """Windows of one length, without padding; labels are empty, (n, 0).

    Attributes:
        left_out: tokens after the last whole window.
    """

    left_out: int


def is_text(name: str) -> bool:
    """Whether a task is a plain text, by its name."""
    return Path(name).suffix.lower() == TEXT_SUFFIX


def split_text(
    path: str | Path, shares: Sequence[float], text_column: str | None = None
) -> list[Examples]:
    """The parts of a text, or of a table with a text a row, of about the given shares.

    Where a piece goes is decided by its own words alone (`position`), so that what is appended to
    a file moves nothing, and equal pieces share a part. A piece is a row; of a plain text it is a
    paragraph, which a blank line ends, or 32 lines of a longer one. Neighbours of one part stay
    one text, as they stand.

    Raises:
        LpafError: the file is missing, packed, no text, not UTF-8 or malformed, or has no such
            column.
    """
    if not is_text(str(path)):
        return hash_split(unlabelled(table_texts(path, text_column or COLUMN)), shares)
    edges = np.cumsum(shares)[:-1]
    parts: list[list[str]] = [[] for _ in shares]
    before = None
    for piece in pieces(read_text(Path(path))):
        part = int(np.searchsorted(edges, position(piece), side="right"))
        if part == before:
            parts[part][-1] += piece
        else:
            parts[part].append(piece)
        before = part
    return [unlabelled([text.strip("\r\n") for text in texts]) for texts in parts]


def pieces(text: str) -> list[str]:
    """Paragraphs with the blank lines after them; together they are the text.

    One of more than 32 lines is cut after every 32. Blank lines before the first are part of it.
    """
    found: list[str] = []
    held: list[str] = []
    lines, ended = 0, False
    for line in text.splitlines(keepends=True):
        filled = bool(line.strip())
        if filled and (ended or lines == _LINES):
            found.append("".join(held))
            held, lines, ended = [], 0, False
        held.append(line)
        lines += filled
        ended = lines > 0 and not filled
    return [*found, "".join(held)] if lines else found


def pack(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Packed:
    """One text after the other as `text_tokens` has them, cut into windows of `length` tokens.

    Every token is in one window, but for those after the last whole one.

    Raises:
        LpafError: there is no whole window, or the tokenizer fails on a text.
    """
    windows = [window.ids for window in text_windows(text_tokens(tokenizer, texts), length)]
    whole = [ids for ids in windows if len(ids) == length]
    left_out = sum(map(len, windows)) - length * len(whole)
    if not whole:
        raise LpafError(
            "one of the three parts of the text (70, 10 and 20 % of its paragraphs or rows) has "
            f"{left_out} tokens, fewer than a window of {length}: give more text, or a smaller "
            "--length"
        )
    return packed(whole, tokenizer.pad_id, left_out)


def packed(windows: Sequence[np.ndarray], pad_id: int, left_out: int = 0) -> Packed:
    """Windows of one length as examples."""
    length = len(windows[0])
    return Packed(
        ids=list(windows),
        types=[np.zeros(length, dtype=np.int32)] * len(windows),
        labels=np.zeros((len(windows), 0), dtype=np.int32),
        max_length=length,
        pad_id=pad_id,
        left_out=left_out,
    )


def sample(windows: Windows, count: int) -> Windows:
    """`count` windows drawn by hash of their tokens, in their order; more add to fewer."""
    places = [hashlib.blake2b(ids.tobytes(), digest_size=8).digest() for ids in windows.ids]
    drawn = sorted(sorted(range(len(places)), key=places.__getitem__)[:count])
    return replace(
        windows,
        ids=[windows.ids[i] for i in drawn],
        types=[windows.types[i] for i in drawn],
        labels=windows.labels[drawn],
    )
