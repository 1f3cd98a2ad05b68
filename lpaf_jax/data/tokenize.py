"""Texts to token ids, with the tokenizer that came with the model."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json
from lpaf_jax.data.examples import Examples

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TokenIds = tuple[list[int], list[int]]

# Questions cut into windows at a time: offsets come as tuples of Python, 30 times their size here.
_CHUNK = 512

# What the classes of `transformers` call their special tokens.
_NAMED = {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}


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
    _limits: "_Limits"

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int
    ) -> list[TokenIds]:
        """`(ids, type_ids)` of every text or pair of texts, special tokens included, not padded.

        What exceeds `max_length` is cut from the longer text of a pair, one token at a time, at
        its end unless the tokenizer's settings say otherwise.

        Raises:
            LpafError: `max_length` leaves no room for a token beside the special ones, or a text
                holds what the model has no embedding for.
        """
        special = self._backend.num_special_tokens_to_add(pairs is not None)
        if max_length <= special:
            raise LpafError(
                f"a length of {max_length} leaves no room for text beside {special} special "
                "tokens; give a larger one"
            )
        self._backend.enable_truncation(
            max_length, strategy="longest_first", direction=self._limits.cut
        )
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return [self._limits.row(encoding) for encoding in self._encodings(rows)]

    def tokens(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """The ids of every text, whole; with the model's `special` tokens around them if asked.

        Raises:
            LpafError: a text holds a token that the model has no embedding for.
        """
        self._backend.no_truncation()
        encodings = self._encodings(list(texts), special)
        return [self._limits.row(encoding)[0] for encoding in encodings]

    def text(self, ids: Sequence[int]) -> str:
        """What ids stand for, without special tokens."""
        found: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return found

    def windows(
        self, questions: Sequence[str], contexts: Sequence[str], *, max_length: int, overlap: int
    ) -> Iterator[list[Window]]:
        """For each question the windows over its context, in order.

        Every window holds the whole question and at most `max_length` tokens; the next one begins
        `overlap` tokens of the context before the end of the last.

        Raises:
            LpafError: beside a question there is no room for more than `overlap` tokens, or the
                model has no embedding for what is in a text.
        """
        for start in range(0, len(questions), _CHUNK):
            part = slice(start, start + _CHUNK)
            self._check_room(questions[part], max_length, overlap)
            self._backend.enable_truncation(max_length, stride=overlap, strategy="only_second")
            pairs = list(zip(questions[part], contexts[part], strict=True))
            for encoding in self._encodings(pairs):
                yield [self._window(one) for one in (encoding, *encoding.overflowing)]

    def _check_room(self, questions: Sequence[str], max_length: int, overlap: int) -> None:
        lengths = [len(ids) for ids in self.tokens(questions)]
        longest = int(np.argmax(lengths))
        taken = lengths[longest] + self._backend.num_special_tokens_to_add(True)
        if overlap < 0 or max_length - taken <= overlap:
            raise LpafError(
                f"a length of {max_length} leaves {max(0, max_length - taken)} tokens for the "
                f"context with question {questions[longest][:60]!r}, too few for windows that "
                f"share {overlap}; give a larger length or a smaller stride"
            )

    def _encodings(self, rows: Sequence[Any], special: bool = True) -> Any:
        try:
            return self._backend.encode_batch(rows, add_special_tokens=special)
        except Exception as error:  # the library raises bare Exception
            raise LpafError(f"the model's tokenizer fails on a text: {error}") from None

    def _window(self, encoding: Any) -> Window:
        offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        outside = [place != 1 for place in encoding.sequence_ids]
        offsets[outside] = -1
        ids, types = (np.array(x, dtype=np.int32) for x in self._limits.row(encoding))
        return Window(ids, types, offsets)


class _Limits(NamedTuple):
    """What a tokenizer gives to its model, and what of it the model can take.

    Attributes:
        cut: the side at which a text that is too long is cut, "right" or "left".
        typed: whether the model is given token types; else all are 0.
        absent: tokens without an embedding, by id.
        types: how many types have an embedding; infinite where nobody looks at them.
    """

    cut: str
    typed: bool
    absent: Mapping[int, str]
    types: float

    def row(self, encoding: Any) -> TokenIds:
        """`(ids, type_ids)` as the model is to have them.

        Raises:
            LpafError: it has no embedding for one of them. JAX would read another row.
        """
        ids: list[int] = encoding.ids
        types: list[int] = encoding.type_ids if self.typed else [0] * len(ids)
        if self.absent and (found := self.absent.keys() & set(ids)):
            raise LpafError(
                f"the text contains {self.absent[min(found)]!r}, for which the model has no "
                f"embedding (token id {min(found)}); remove it, or resize the embeddings"
            )
        if max(types, default=0) >= self.types:
            raise LpafError(
                f"the tokenizer gives token type {max(types)}, but the model has embeddings for "
                f"only {self.types} (type_vocab_size in config.json), so it cannot read pairs"
            )
        return ids, types


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
    """The tokenizer of a Hugging Face model folder, as `AutoTokenizer` of `transformers` has it.

    Raises:
        LpafError: the folder holds no tokenizer, one that cannot be read, or one that gives ids
            for which the model has no embedding.
    """
    from lpaf_jax.checkpoints.tokenizer_files import auto_tokenizer, table_rows  # and jax with it

    folder = Path(folder)
    if not folder.is_dir():
        raise LpafError(f"{folder} is not a folder; give a model folder with tokenizer.json")
    rows, types = table_rows(folder)
    known = auto_tokenizer(folder)
    limits = _Limits(
        cut=known.truncation_side,
        typed="token_type_ids" in known.model_input_names,
        absent=_absent(folder, known, rows),
        types=types,
    )
    backend = known.backend_tokenizer
    # Published files may carry the padding their author used; rows are padded by the batch here.
    backend.no_padding()
    pad, end = (_special_id(folder, name, known, rows) for name in ("pad", "eos"))
    # Models without a padding token exist; padded places are masked, so any id will do.
    return Tokenizer(0 if pad is None else pad, end, backend, limits)


def _absent(folder: Path, known: Any, rows: float) -> dict[int, str]:
    """Tokens without an embedding that the class of the tokenizer adds of itself, by id.

    `[MASK]` for one, where the vocabulary has none: no harm is done until a text holds it.

    Raises:
        LpafError: there are others.
    """
    beyond = {index: token for token, index in known.get_vocab().items() if index >= rows}
    signatures = (inspect.signature(kind).parameters for kind in type(known).__mro__)
    own = {given[name].default for given in signatures for name in _NAMED & given.keys()}
    if foreign := [index for index, token in beyond.items() if token not in own]:
        last = max(foreign)
        raise LpafError(
            f"{folder}: the tokenizer gives ids up to {last} ({beyond[last]!r}), but the model "
            f"has {rows} token embeddings (vocab_size in config.json); resize the embeddings, or "
            "remove the tokens from the tokenizer's files"
        )
    return beyond


def _special_id(folder: Path, name: str, known: Any, rows: float) -> int | None:
    """The id of a special token: that of the tokenizer's settings, the model's, or the class's."""
    settings, config = (_values(folder / file) for file in ("tokenizer_config.json", "config.json"))
    own = getattr(known, f"{name}_token_id")
    of_model = config.get(f"{name}_token_id")
    # Llama 3 has several tokens that end a text, the plain one first.
    of_model = of_model[0] if isinstance(of_model, list) and of_model else of_model
    order = (own, of_model) if settings.get(f"{name}_token") else (of_model, own)
    return next((i for i in order if isinstance(i, int) and 0 <= i < rows), None)


def _values(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}
