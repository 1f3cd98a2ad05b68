"""Plain text for language models: a stream of tokens, cut into windows of one length.

No file is read whole: of a text of any size a few megabytes are in memory at a time.
"""

import hashlib
import heapq
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data.batches import Batch
from lpaf_jax.data.contents import check_text
from lpaf_jax.data.split import held_out
from lpaf_jax.data.tables import SUFFIXES, TEXT_COLUMN, table_texts
from lpaf_jax.data.tokenize import Encoded, Tokenizer

# Characters that are tokenized at a time.
PIECE = 1 << 20

# Between a letter or digit and a space or newline: the patterns by which byte-level tokenizers
# split a text never match across that place, and do across others ("." and newlines in Llama 3).
_SEAM = re.compile(r"[^\W_](?=\s)")


class TextWindow(NamedTuple):
    """A stretch of the stream of tokens.

    Attributes:
        ids: (at most length,) int32.
        first: the tokens from this one on count; those before are context that counted earlier.
    """

    ids: np.ndarray
    first: int


def text_tokens(
    tokenizer: Tokenizer, source: str | Path | Sequence[str], text_column: str = TEXT_COLUMN
) -> Iterator[np.ndarray]:
    """The tokens of one text after the other, int32, in pieces of any length.

    Every text begins and ends with the special tokens that the tokenizer itself adds (Llama's
    first token, none for GPT-2), and the end-of-text token, if the model has one, stands between
    two texts. The tokens of a single text are therefore those of the tokenizer, to the letter. A
    text of more than a megabyte is tokenized piece by piece, cut after words: the tokens of
    byte-level tokenizers (GPT-2, Llama 3, Qwen) stay the same; those that mark the beginning of a
    text (Llama 2) have one token more in each piece.

    Args:
        tokenizer: the model's.
        source: a file, one text, but for a file of rows (.json, .csv, .tsv, .jsonl or .parquet,
            read whole), where every row is a text; or the texts themselves.
        text_column: the column of the text in a file of rows.

    Raises:
        LpafError: the file is packed or no text, or has no such column; when it is read, it is
            missing or not UTF-8.
    """
    return _stream(tokenizer, _texts(source, text_column))


def _stream(tokenizer: Tokenizer, texts: Iterable[Iterable[str]]) -> Iterator[np.ndarray]:
    head, tail = _around(tokenizer)
    for i, pieces in enumerate(texts):
        between = [tokenizer.end_id] if i and tokenizer.end_id is not None else []
        if between == tail[-1:]:
            between = []
        yield np.array([*between, *head], dtype=np.int32)
        for piece in pieces:
            yield np.array(tokenizer.tokens([piece])[0], dtype=np.int32)
        yield np.array(tail, dtype=np.int32)


def text_windows(
    tokens: Iterable[np.ndarray], length: int, stride: int | None = None
) -> Iterator[TextWindow]:
    """Windows of `length` tokens over a stream, each `stride` tokens after the last.

    Every token counts in the first window that holds it. The last window ends with the stream and
    may be shorter; one that holds nothing new is left out.

    Args:
        tokens: as of `text_tokens`.
        length: tokens of a window.
        stride: from one window to the next, `length` unless given: then none is seen twice.

    Raises:
        LpafError: a length below 2, or a stride outside 1..length.
    """
    step = length if stride is None else stride
    if length < 2 or not 1 <= step <= length:
        raise LpafError(
            f"windows of {length} tokens with stride {step} are impossible; the length must be at "
            "least 2, the stride from 1 to the length"
        )
    return _cut(tokens, length, step)


def text_batches(
    windows: Iterable[TextWindow], batch_size: int, length: int, pad_id: int
) -> Iterator[Batch]:
    """Batches of windows, all of the shape (batch_size, length), in order.

    A batch is as those of `Batches`, with no labels and a `weight` of (B, L) float32: 1 on the
    tokens whose log-likelihood counts, given those before them in their row. These are the new
    tokens of each window but for the first in its row, which has nothing before it. Rows that only
    fill the last batch up repeat the one before, with weight 0.
    """
    rows: list[TextWindow] = []
    for window in windows:
        rows.append(window)
        if len(rows) == batch_size:
            yield _batch(rows, batch_size, length, pad_id)
            rows = []
    if rows:
        yield _batch(rows, batch_size, length, pad_id)


def sample_blocks(
    tokens: Iterable[np.ndarray], length: int, count: int, seed: int = 0
) -> np.ndarray:
    """At most `count` blocks of a stream cut into blocks of `length`, (blocks, length) int32.

    A stream that has fewer gives all it has.

    Which blocks depends on their numbers and the seed alone; a larger count adds to a smaller. They
    keep their order. The stream is read to its end, `count` blocks are in memory.

    Raises:
        LpafError: the stream fills no block, `count` is below 1 or `length` below 2.
    """
    return _sampled(_whole_blocks(tokens, length), length, count, seed)


def sample_and_end(
    tokens: Iterable[np.ndarray], length: int, count: int, seed: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """A sample of all but the last blocks of a stream, and those: a text, and one to judge by.

    Args:
        tokens, length, count, seed: see `sample_blocks`.
        end: how many the last ones are at most; a tenth of all where those are fewer, one at least.

    Returns:
        (blocks, length) each; the second is empty where the stream has one block alone.

    Raises:
        LpafError: see `sample_blocks`.
    """
    held: deque[np.ndarray] = deque()

    def before() -> Iterator[np.ndarray]:
        total = 0
        for block in _whole_blocks(tokens, length):
            total += 1
            held.append(block)
            if len(held) > end:
                yield held.popleft()
        while len(held) > held_out(total, end):
            yield held.popleft()

    sample = _sampled(before(), length, count, seed)
    return sample, np.array(held, np.int32).reshape(-1, length)


def _whole_blocks(tokens: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    for window in text_windows(tokens, length):
        if len(window.ids) == length:
            yield window.ids


def _sampled(blocks: Iterable[np.ndarray], length: int, count: int, seed: int) -> np.ndarray:
    if count < 1:
        raise LpafError(f"a sample of {count} blocks is empty; ask for at least 1")
    kept: list[tuple[int, int, np.ndarray]] = []
    for number, ids in enumerate(blocks):
        item = (-_draw(seed, number), number, ids)
        if len(kept) < count:
            heapq.heappush(kept, item)
        elif item[0] > kept[0][0]:
            heapq.heapreplace(kept, item)
    if not kept:
        raise LpafError(
            f"the text does not fill one sequence of {length} tokens; give a smaller length"
        )
    return np.stack([ids for _, _, ids in sorted(kept, key=lambda item: item[1])])


def encode_text(
    tokenizer: Tokenizer,
    source: str | Path | Sequence[str],
    length: int,
    text_column: str = TEXT_COLUMN,
) -> Encoded:
    """The whole blocks of a text for training, in memory (4 bytes a token), for `train_batches`.

    The tokens are their own labels: those of the data are empty, (n, 0). What is left after the
    last whole block is dropped.

    Raises:
        LpafError: as `text_tokens`, or the text does not fill one block.
    """
    ids = list(_whole_blocks(text_tokens(tokenizer, source, text_column), length))
    if not ids:
        raise LpafError(
            f"the text does not fill one block of {length} tokens; give a smaller length"
        )
    return Encoded(
        ids=ids,
        types=[np.zeros(length, dtype=np.int32)] * len(ids),
        labels=np.zeros((len(ids), 0), dtype=np.int32),
        max_length=length,
        pad_id=tokenizer.pad_id,
    )


def perplexity(log_likelihood_sum: float, tokens: float) -> float:
    """The exponential of the mean negative log-likelihood of a token; inf above all floats.

        exp(−Σ_t log p(x_t | x_<t) / T)

    Summed over the T tokens of weight 1 of `text_batches`. With a stride of the length this is the
    figure of the recipe in the documentation of `transformers` ("Perplexity of fixed-length
    models"). With a shorter one, each token counts once here, where that recipe gives
    the mean of a window of n new tokens the weight n − 1: the figures agree but for that.

    Args:
        log_likelihood_sum: Σ log p, natural logarithms.
        tokens: T.

    Raises:
        ValueError: no tokens.
    """
    if tokens <= 0:
        raise ValueError(f"{tokens} tokens have no perplexity")
    try:
        return math.exp(-log_likelihood_sum / tokens)
    except OverflowError:
        return math.inf


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    [plain], [whole] = tokenizer.tokens(["a"]), tokenizer.tokens(["a"], special=True)
    places = [i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain]
    start = places[0] if places else 0
    return whole[:start], whole[start + len(plain) :]


def _texts(source: str | Path | Sequence[str], column: str) -> Iterable[Iterable[str]]:
    if not isinstance(source, (str, Path)):
        return ([text] for text in source)
    if Path(source).suffix.lower() in SUFFIXES:
        return ([text] for text in table_texts(source, column))
    check_text(Path(source))
    return [_pieces(Path(source))]


def _pieces(path: Path) -> Iterator[str]:
    """A file in pieces of about PIECE characters; newlines stay as they are."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            held = file.read(PIECE)
            # The last piece is not cut: a file of one piece is tokenized as it stands.
            while more := file.read(PIECE):
                # A text without such a place is cut anywhere rather than held whole.
                end = max((match.end() for match in _SEAM.finditer(held)), default=len(held))
                yield held[:end]
                held = held[end:] + more
            if held:
                yield held
    except FileNotFoundError:
        raise LpafError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise LpafError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise LpafError(f"{path} cannot be read: {error.strerror or error}") from None


def _cut(tokens: Iterable[np.ndarray], length: int, step: int) -> Iterator[TextWindow]:
    held = np.zeros(0, dtype=np.int32)
    first = 0
    for piece in tokens:
        held = np.concatenate([held, piece])
        start = 0
        while len(held) - start >= length:
            # A copy: a window that is kept must not keep the piece.
            yield TextWindow(held[start : start + length].copy(), first)
            start, first = start + step, length - step
        held = held[start:]
    if len(held) > first:
        yield TextWindow(held.copy(), first)


def _batch(rows: list[TextWindow], batch_size: int, length: int, pad_id: int) -> Batch:
    input_ids = np.full((batch_size, length), pad_id, dtype=np.int32)
    mask = np.zeros((batch_size, length), dtype=np.int32)
    weight = np.zeros((batch_size, length), dtype=np.float32)
    for i in range(batch_size):
        ids, first = rows[min(i, len(rows) - 1)]
        input_ids[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
        if i < len(rows):
            weight[i, max(first, 1) : len(ids)] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(input_ids),
        "weight": weight,
    }


def _draw(seed: int, number: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
