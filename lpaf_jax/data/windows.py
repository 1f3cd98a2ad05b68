"""Windows over contexts that are longer than a model reads, and the answers found in them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lpaf_jax.data.squad import Questions
from lpaf_jax.data.tokenize import Encoded, Tokenizer

DOC_STRIDE = 128
LENGTH = 384


@dataclass(frozen=True)
class Windows:
    """Questions cut into windows, for training and for evaluation.

    Attributes:
        encoded: the n windows; labels (n, 2) int32 are the first and the last token of the first
            answer, or (0, 0), the first token, where the window does not hold all of it.
        question: (n,) int32, for each window the position of its question; windows of a question
            follow each other.
        offsets: for each window (length, 2) int32, see `Window`.
    """

    encoded: Encoded
    question: np.ndarray
    offsets: list[np.ndarray]


def encode_questions(
    tokenizer: Tokenizer,
    questions: Questions,
    max_length: int = LENGTH,
    doc_stride: int = DOC_STRIDE,
) -> Windows:
    """Tokenize every question with its context, in as many windows as the context takes.

    The context alone is cut, never the question. `doc_stride` is what two windows have in common,
    in tokens, as in the question-answering scripts of `transformers` (in BERT's own, it is the
    step from one window to the next).

    Raises:
        LpafError: beside a question there is no room for more than `doc_stride` tokens.
    """
    # Some questions of SQuAD begin with a run of spaces, which some tokenizers keep as tokens.
    asked = [text.strip() for text in questions.texts]
    cut = tokenizer.windows(asked, questions.pairs, max_length=max_length, overlap=doc_stride)
    of: list[int] = []
    found = []
    for i, windows in enumerate(cut):
        of += [i] * len(windows)
        found += windows
    spans = [_token_span(w.offsets, questions.labels[i]) for i, w in zip(of, found, strict=True)]
    encoded = Encoded(
        ids=[window.ids for window in found],
        types=[window.types for window in found],
        labels=np.array(spans, dtype=np.int32).reshape(-1, 2),
        max_length=max_length,
        pad_id=tokenizer.pad_id,
    )
    return Windows(encoded, np.array(of, dtype=np.int32), [window.offsets for window in found])


def _token_span(offsets: np.ndarray, characters: np.ndarray) -> tuple[int, int]:
    begin, over = (int(place) for place in characters)
    context = np.flatnonzero(offsets[:, 0] >= 0)
    if begin < 0 or not context.size:
        return 0, 0
    starts, ends = offsets[context, 0], offsets[context, 1]
    if starts[0] > begin or ends[-1] < over:
        return 0, 0
    # The first token that goes beyond the first character, the last that starts before the end:
    # a character of several tokens is taken whole, as is a token that carries a space before it.
    first = np.searchsorted(ends, begin, side="right")
    last = np.searchsorted(starts, over, side="left") - 1
    return (int(context[first]), int(context[last])) if first <= last else (0, 0)


class Answer(NamedTuple):
    """A span of a context; `context[start:end]` is `text`; `score` sums its two logits."""

    text: str
    start: int
    end: int
    score: float


class Found(NamedTuple):
    """What was found for a question.

    Attributes:
        answers: the best spans, best first; no two are the same.
        null_score: the score of no answer.
    """

    answers: list[Answer]
    null_score: float

    @property
    def text(self) -> str:
        """The best span, whatever the score of no answer; empty if there is no span at all."""
        return self.answers[0].text if self.answers else ""

    @property
    def no_answer(self) -> float:
        """By how much no answer scores above the best span: above a threshold, none is given."""
        return self.null_score - self.answers[0].score if self.answers else float("inf")


def find_answers(
    questions: Questions,
    windows: Windows,
    logits: Sequence[np.ndarray] | np.ndarray,
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> list[Found]:
    """The best answers of every question, over all of its windows.

        score(i, j) = start_i + end_j,   i ≤ j < i + max_answer_length,   i, j tokens of the context
        null score  = min over windows of start_0 + end_0

    Every such span is compared, where BERT's script pairs the 20 best starts with the 20 best
    ends. Spaces at either end of a span are left out of it.

    Args:
        questions: what was asked.
        windows: of `encode_questions`, all of them.
        logits: for each window (L, 2), L at least its length: scores of being first and last
            token of the answer.
        n_best: at most so many answers to a question.
        max_answer_length: longest answer, in tokens.

    Returns:
        One `Found` for each question.

    References:
        J. Devlin et al., BERT: Pre-training of deep bidirectional transformers for language
        understanding, 2019, sections 4.2 and 4.3.
    """
    null = np.full(len(questions), np.inf)
    best: list[dict[tuple[int, int], Answer]] = [{} for _ in range(len(questions))]
    for i, offsets, scores in zip(windows.question, windows.offsets, logits, strict=True):
        null[i] = min(null[i], float(scores[0].sum()))
        context, spans = questions.pairs[i], _by_score(offsets, scores, max_answer_length)
        for place, answer in _best(context, spans, n_best).items():
            if place not in best[i] or best[i][place].score < answer.score:
                best[i][place] = answer
    ranked = (sorted(found.values(), key=lambda answer: -answer.score) for found in best)
    return [
        Found(answers[:n_best], float(score)) for answers, score in zip(ranked, null, strict=True)
    ]


def _by_score(
    offsets: np.ndarray, logits: np.ndarray, longest: int
) -> Iterator[tuple[int, int, float]]:
    """First and past-the-last character and score of every span of a window, best first."""
    context = np.flatnonzero(offsets[:, 0] >= 0)
    if not context.size:
        return
    start, end = logits[context].astype(np.float64).T
    # Row i, column d: from token i to token i + d.
    ends = np.lib.stride_tricks.sliding_window_view(
        np.concatenate([end, np.full(longest - 1, -np.inf)]), longest
    )
    scores = (start[:, None] + ends).ravel()
    for place in np.argsort(-scores, kind="stable"):
        first, more = divmod(int(place), longest)
        if first + more < context.size:
            begin, over = offsets[context[first], 0], offsets[context[first + more], 1]
            yield int(begin), int(over), float(scores[place])


def _best(
    context: str, spans: Iterator[tuple[int, int, float]], count: int
) -> dict[tuple[int, int], Answer]:
    """The first `count` that differ: a character of several tokens gives the same span often."""
    found: dict[tuple[int, int], Answer] = {}
    for begin, over, score in spans:
        if len(found) == count:
            break
        inner = context[begin:over]
        text = inner.strip()
        start = begin + len(inner) - len(inner.lstrip())
        if text:
            place = start, start + len(text)
            found.setdefault(place, Answer(text, *place, score))
    return found
