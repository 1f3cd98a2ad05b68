"""Texts to token ids, with the tokenizer that came with the model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpaf_jax.data.examples import Examples
from lpaf_jax.errors import LpafError

TokenIds = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer.

    Attributes:
        pad_id: the token id that fills a row up to its padded length.
    """

    pad_id: int
    _encode: Callable[[Sequence[str], Sequence[str] | None, int], list[TokenIds]]

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int
    ) -> list[TokenIds]:
        """`(ids, type_ids)` of every text or pair of texts, special tokens included, not padded.

        What exceeds `max_length` is cut from the end of the longer text of a pair, one token at a
        time.

        Raises:
            LpafError: `max_length` leaves no room for a token beside the special ones.
        """
        return self._encode(texts, pairs, max_length)


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

    def run(texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> list[TokenIds]:
        _check_length(max_length, backend.num_special_tokens_to_add(pairs is not None))
        backend.enable_truncation(max_length, strategy="longest_first")
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return [(encoding.ids, encoding.type_ids) for encoding in backend.encode_batch(rows)]

    return Tokenizer(_pad_id(folder, backend.token_to_id), run)


def _from_transformers(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # one of many kinds, by library version and tokenizer class
        reason = str(error).strip().split("\n")[0]
        raise LpafError(
            f"{folder} holds no tokenizer that can be read ({reason}); copy tokenizer.json there"
        ) from None

    def run(texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> list[TokenIds]:
        _check_length(max_length, backend.num_special_tokens_to_add(pairs is not None))
        rows = backend(
            list(texts),
            None if pairs is None else list(pairs),
            truncation="longest_first",
            max_length=max_length,
            return_token_type_ids=True,
        )
        return list(zip(rows["input_ids"], rows["token_type_ids"], strict=True))

    return Tokenizer(0 if backend.pad_token_id is None else backend.pad_token_id, run)


def _check_length(max_length: int, special: int) -> None:
    if max_length <= special:
        raise LpafError(
            f"a length of {max_length} leaves no room for text beside {special} special tokens; "
            "give a larger one"
        )


def _pad_id(folder: Path, token_to_id: Callable[[str], int | None]) -> int:
    token = _settings(folder / "tokenizer_config.json").get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    known = token_to_id(token) if token else None
    if known is None:
        known = _settings(folder / "config.json").get("pad_token_id")
    # Models without a padding token exist; padded places are masked, so any id will do.
    return 0 if known is None else int(known)


def _settings(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LpafError(f"{path} cannot be read as JSON: {error}") from None
    return value if isinstance(value, dict) else {}
