"""Texts to token ids, with the tokenizer that came with the model."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lpaf_jax.data.examples import Examples
from lpaf_jax.errors import LpafError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TokenIds = tuple[list[int], list[int]]

# Questions cut into windows at a time: offsets come as tuples of Python, 30 times their size here.
_CHUNK = 512


class Window(NamedTuple):
    """A question with as much of its context as there is room for.

    Attributes:
        ids: (length,) int32 token ids, special tokens included.
        types: (length,) int32 token type ids.
        offsets: (length, 2) int32, first and past-the-last character of each token of the context
            in the context; (-1, -1) for tokens that are not of the context.
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer.

    Attributes:
        pad_id: the token id that fills a row up to its padded length.
        end_id: the id of the token that ends a text, if the model has one.
    """

    pad_id: int
    end_id: int | None
    _backend: "Backend"

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int
    ) -> list[TokenIds]:
        """`(ids, type_ids)` of every text or pair of texts, special tokens included, not padded.

        What exceeds `max_length` is cut from the end of the longer text of a pair, one token at a
        time.

        Raises:
            LpafError: `max_length` leaves no room for a token beside the special ones.
        """
        special = self._backend.num_special_tokens_to_add(pairs is not None)
        if max_length <= special:
            raise LpafError(
                f"a length of {max_length} leaves no room for text beside {special} special "
                "tokens; give a larger one"
            )
        self._backend.enable_truncation(max_length, strategy="longest_first")
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return [(encoding.ids, encoding.type_ids) for encoding in self._backend.encode_batch(rows)]

    def tokens(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """The ids of every text, whole; with the model's `special` tokens around them if asked."""
        self._backend.no_truncation()
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in encodings]

    def windows(
        self, questions: Sequence[str], contexts: Sequence[str], *, max_length: int, overlap: int
    ) -> Iterator[list[Window]]:
        """For each question the windows over its context, in order.

        Every window holds the whole question and at most `max_length` tokens; the next one begins
        `overlap` tokens of the context before the end of the last.

        Raises:
            LpafError: beside a question there is no room for more than `overlap` tokens.
        """
        for start in range(0, len(questions), _CHUNK):
            part = slice(start, start + _CHUNK)
            self._check_room(questions[part], max_length, overlap)
            self._backend.enable_truncation(max_length, stride=overlap, strategy="only_second")
            pairs = list(zip(questions[part], contexts[part], strict=True))
            for encoding in self._backend.encode_batch(pairs):
                yield [_window(one) for one in (encoding, *encoding.overflowing)]

    def _check_room(self, questions: Sequence[str], max_length: int, overlap: int) -> None:
        lengths = [len(ids) for ids in self.tokens(questions)]
        longest = int(np.argmax(lengths))
        taken = lengths[longest] + self._backend.num_special_tokens_to_add(True)
        if overlap < 0 or max_length - taken <= overlap:
            raise LpafError(
                f"a length of {max_length} leaves {max(0, max_length - taken)} tokens for the "
                f"context beside question {questions[longest][:60]!r}, which windows that share "
                f"{overlap} do not get through; give a larger length or a smaller stride"
            )


def _window(encoding: Any) -> Window:
    offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    outside = [place != 1 for place in encoding.sequence_ids]
    offsets[outside] = -1
    ids, types = (np.array(x, dtype=np.int32) for x in (encoding.ids, encoding.type_ids))
    return Window(ids, types, offsets)


@dataclass(frozen=True)
class Encoded:
    """Tokenized examples.

    Attributes:
        ids: n arrays of token ids, int32, each at most `max_length` long.
        types: n arrays of token type ids of the same lengths.
        labels: as in the examples: (n,) int32 classes or (n,) float32 values; (n, 2) int32 first
            and last token of an answer.
        max_length: the length the texts were cut at.
        pad_id: the id to pad with.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray]
    labels: np.ndarray
    max_length: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Tokenizer, examples: Examples, max_length: int) -> Encoded:
    """Tokenize the examples, cutting each at `max_length` tokens.

    Raises:
        LpafError: `max_length` leaves no room for a token beside the special ones.
    """
    rows = tokenizer.encode(examples.texts, examples.pairs, max_length=max_length)
    return Encoded(
        ids=[np.array(ids, dtype=np.int32) for ids, _ in rows],
        types=[np.array(types, dtype=np.int32) for _, types in rows],
        labels=examples.labels,
        max_length=max_length,
        pad_id=tokenizer.pad_id,
    )


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model folder.

    `tokenizer.json` is read by the `tokenizers` library alone, which loads in milliseconds; a
    folder with only a vocabulary goes through `transformers`.

    Raises:
        LpafError: the folder holds no tokenizer, or one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LpafError(f"{folder} is not a folder; a model folder holds tokenizer.json")
    file = folder / "tokenizer.json"
    return _from_json(file, folder) if file.exists() else _from_transformers(folder)


def _from_json(file: Path, folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise LpafError(f"{file} is not a readable tokenizer: {error}") from None
    # Published files may carry the padding their author used; rows are padded by the batch here.
    backend.no_padding()
    pad, end = (_special_id(folder, name, backend.token_to_id) for name in ("pad", "eos"))
    # Models without a padding token exist; padded places are masked, so any id will do.
    return Tokenizer(0 if pad is None else pad, end, backend)


def _from_transformers(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        # Told not to trust code: it would ask at the console, in the middle of a run.
        known = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        backend = known.backend_tokenizer  # which only tokenizers without tokenizer.json lack
    except Exception as error:  # one of many kinds, by library version and tokenizer class
        reason = str(error).strip().split("\n")[0]
        raise LpafError(
            f"{folder} holds no tokenizer that can be read ({reason}); copy tokenizer.json there"
        ) from None
    backend.no_padding()
    return Tokenizer(known.pad_token_id or 0, known.eos_token_id, backend)


def _special_id(folder: Path, name: str, token_to_id: Callable[[str], int | None]) -> int | None:
    token = _settings(folder / "tokenizer_config.json").get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    known: Any = token_to_id(token) if token else None
    if known is None:
        known = _settings(folder / "config.json").get(f"{name}_token_id")
    # Llama 3 has several tokens that end a text, the plain one first.
    known = known[0] if isinstance(known, list) and known else known
    return int(known) if isinstance(known, int) else None


def _settings(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LpafError(f"{path} cannot be read as JSON: {error}") from None
    return value if isinstance(value, dict) else {}
