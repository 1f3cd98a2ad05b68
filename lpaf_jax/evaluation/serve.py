"""A saved model put to use: evaluate a file, answer lines."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from lpaf_jax.checkpoints import find_model, load_model
from lpaf_jax.checkpoints.headless import head_in
from lpaf_jax.checkpoints.outputs import answers_of, class_names
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.files import read_json
from lpaf_jax.core.folders import run_of, run_record
from lpaf_jax.data import (
    Encoded,
    Examples,
    Questions,
    Tokenizer,
    encode,
    encode_questions,
    eval_batches,
    find_answers,
    load_tokenizer,
    read_examples,
    read_squad,
)
from lpaf_jax.data.contents import refuse_packed
from lpaf_jax.data.examples import Kind
from lpaf_jax.data.language import COLUMN
from lpaf_jax.data.tables import LABEL_COLUMN, TEXT_COLUMN
from lpaf_jax.data.windows import DOC_STRIDE, LENGTH
from lpaf_jax.evaluation.perplexity import Judge, text_judge
from lpaf_jax.models import as_function, parameters
from lpaf_jax.models.functional import Params
from lpaf_jax.tasks.kinds import KINDS, TaskSpec, length_for, spec_of
from lpaf_jax.train import predict

_BATCH = 32
# Longest texts of a model that does not say what it was trained with.
_USUAL: dict[Kind, int] = {"classification": 128, "regression": 128, "span": LENGTH}


LogitsOf = Callable[[Encoded], np.ndarray]
OnBatch = Callable[[int, int], None]


class Said(NamedTuple):
    """What a model says to a text.

    Attributes:
        text: what it was asked.
        answer: the name of a class, a number, or a piece of the context, which is empty where a
            model of questions without answers finds none.
        score: the probability of the class; of an answer, or of none, the sum of its two logits;
            None beside a number.
    """

    text: str
    answer: str | float
    score: float | None

    @property
    def line(self) -> str:
        """What `lpaf predict` prints."""
        cells = (self.answer, self.score, self.text)
        return "\t".join(
            f"{cell:.4f}" if isinstance(cell, float) else cell for cell in cells if cell is not None
        )


@dataclass(frozen=True)
class Predictor:
    """A model, its tokenizer, and what it reads.

    Attributes:
        spec: `spec.length` is the longest text in tokens; what is longer is cut, or read in
            windows where the answer is a piece of it.
    """

    model: nnx.Module
    tokenizer: Tokenizer
    spec: TaskSpec

    def logits(self, data: Encoded, batch: int) -> np.ndarray:
        """What the head gives for all examples; see `lpaf_jax.train.predict`."""
        forward = jax.jit(as_function(self.model))
        return predict(forward, parameters(self.model), data, batch)

    def predict(self, texts: Iterable[str], batch: int = _BATCH) -> Iterator[Said]:
        """The answer to each text, in order, `batch` texts at a time.

        A model of text pairs reads both from one string, with a tab between them; a question comes
        before its context. Lazy in its input: no more than `batch` texts are drawn before the
        first is answered.

        Raises:
            LpafError: `batch` is less than 1, or a text cannot be read: it is no pair where it
                must be one, or a question leaves no room for its context; all texts before it
                have been answered then.
        """
        _check_batch(batch)
        forward, params = jax.jit(as_function(self.model)), parameters(self.model)
        stream, answered = iter(texts), 0
        while drawn := list(islice(stream, batch)):
            chunk = list(takewhile(lambda text: self._amiss(text) is None, drawn))
            if chunk:
                yield from self._answers(
                    chunk, lambda encoded: predict(forward, params, encoded, batch)
                )
            answered += len(chunk)
            if len(chunk) < len(drawn):
                text = drawn[len(chunk)]
                raise LpafError(f"line {answered + 1}: {self._amiss(text)}: {text!r}")

    def _amiss(self, text: str) -> str | None:
        """Why a text cannot be read; None where it can."""
        spans = self.spec.kind == "span"
        if self.spec.pairs and text.count("\t") != 1:
            what = "one question and one context" if spans else "two texts"
            return f"the model reads {what} per line, separated by a tab"
        try:
            self.tokenizer.tokens([text])
        except LpafError as error:
            return str(error)
        if spans:
            question = text.partition("\t")[0].strip()
            taken = len(self.tokenizer.encode([question], [""], max_length=4 * len(text) + 8)[0][0])
            if self.spec.length - taken <= self.spec.overlap:
                return (
                    f"the question is too long for a window of {self.spec.length} tokens with "
                    f"more than {self.spec.overlap} tokens of context"
                )
        return None

    def _answers(self, texts: list[str], logits_of: LogitsOf) -> Iterator[Said]:
        spec = self.spec
        if spec.kind == "span":
            yield from self._found(texts, logits_of)
            return
        logits = logits_of(encode(self.tokenizer, self._examples(texts), spec.length))
        if spec.kind == "regression":
            for text, row in zip(texts, logits, strict=True):
                yield Said(text, float(row[0]), None)
            return
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        for text, row in zip(texts, shifted / shifted.sum(-1, keepdims=True), strict=True):
            yield Said(text, spec.label_names[int(row.argmax())], float(row.max()))

    def _found(self, texts: list[str], logits_of: LogitsOf) -> Iterator[Said]:
        asked, contexts = zip(*(text.split("\t") for text in texts), strict=True)
        nothing = np.full((len(texts), 2), -1, np.int32)
        no_answers: list[list[str]] = [[] for _ in texts]
        questions = Questions(list(asked), list(contexts), nothing, list(asked), no_answers)
        spec = self.spec
        windows = encode_questions(self.tokenizer, questions, spec.length, spec.overlap)
        found = find_answers(questions, windows, logits_of(windows.encoded), n_best=1)
        for text, one in zip(texts, found, strict=True):
            if not one.answers or (spec.no_answer and one.no_answer > 0):
                yield Said(text, "", one.null_score)
            else:
                yield Said(text, one.text, one.answers[0].score)

    def _examples(self, texts: list[str]) -> Examples:
        labels = np.zeros(len(texts), np.int32)
        if not self.spec.pairs:
            return Examples(texts, None, labels)
        parts = [text.split("\t") for text in texts]
        return Examples([first for first, _ in parts], [second for _, second in parts], labels)


def load_predictor(folder: Path, *, stage: str = "final", length: int | None = None) -> Predictor:
    """The model after `stage` of the run in `folder`, or the model that `folder` itself is.

    Args:
        folder: of a run or of a model.
        stage: dense, pruned, factorized or final; a model folder is its own final stage.
        length: longest text in tokens; None takes what the model was trained with.

    Raises:
        LpafError: there is no such folder or stage, its files are damaged, the model has a head
            that answers nothing, or it cannot read so long a text.
    """
    place = find_model(folder, stage)
    values = read_json(place / "config.json")
    kind = _kind_in(place, values)
    names = class_names(values, place) if kind == "classification" else []
    tokenizer = load_tokenizer(place)  # what is wrong with it is said before the weights are read
    model = load_model(place)
    reads = values.get("lpaf_reads", {})
    spec = spec_of(
        kind,
        reads,
        names,
        length=length_for(length, reads.get("length", _USUAL[kind]), model.positions),
        stride=DOC_STRIDE,
    )
    return Predictor(model, tokenizer, spec)


def _kind_in(place: Path, values: dict[str, Any]) -> Kind:
    head = head_in(place)
    if head == "lm":
        raise LpafError(
            f"{place} is a language model and has no classification head: use lpaf generate, or "
            f"measure its perplexity with `lpaf evaluate {place} --data TEXT`"
        )
    return "span" if head == "span" else answers_of(values, place)


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise LpafError(f"batch is {batch}, but must be at least 1")


def evaluate_file(folder: Path, data: Path, **chosen: Any) -> dict[str, Any]:
    """The official metrics of a saved model on a file; see `lpaf evaluate`.

    A file with unanswerable questions is judged as in SQuAD v2.0, whatever the model was made for.
    A language model is judged by its perplexity of a text: see `text_judge`.

    Args:
        folder: of a run or of a model.
        data: the file.
        chosen: as of `judge_of`.

    Raises:
        LpafError: see `judge_of`.
    """
    judge = judge_of(folder, data, **chosen)
    return judge.score(parameters(judge.model))


def judge_of(
    folder: Path,
    data: Path,
    *,
    stage: str = "final",
    text_column: str | None = None,
    label_column: str | None = None,
    pair_column: str | None = None,
    batch: int | None = None,
    length: int | None = None,
    stride: int | None = None,
    on_batch: OnBatch = lambda done, count: None,
) -> Judge:
    """The model, and what judges any parameters of its shapes; see `evaluate_file`.

    Args:
        folder: of a run or of a model.
        data: the file.
        stage: as of `load_predictor`.
        text_column: a column's name; None is that of the run, `sentence` where it says nothing,
            and `text` for a language model.
        label_column: the same, or `label`.
        pair_column: the same, of the second text.
        batch: texts at a time, 32 unless given; windows of a language model, one unless given.
        on_batch: is called after each batch with how many are done, of how many.
        length: as of `load_predictor`.
        stride: of the windows of a language model, in tokens; None takes the length.

    Raises:
        LpafError: the model cannot be loaded, the file is not what the columns say, or it is of
            another kind than the model.
    """
    _check_batch(1 if batch is None else batch)
    place = find_model(folder, stage)
    if head_in(place) == "lm":
        if label_column or pair_column:
            raise LpafError(f"{place} is a language model, evaluated on text without labels")
        return text_judge(
            place,
            data,
            text_column=_text_column(place, text_column),
            length=length,
            stride=stride,
            batch=batch or 1,
            on_batch=on_batch,
        )
    if stride is not None:
        raise SettingError(("stride",), "works only for language models, but this is not one")
    predictor = load_predictor(folder, stage=stage, length=length)
    spec = predictor.spec
    squad = spec.kind == "span"
    if squad and data.suffix.lower() != ".json":
        refuse_packed(data)
        raise LpafError(f"{data} does not fit the model: it needs a .json file in SQuAD format")
    examples: Examples
    if squad:
        questions = examples = read_squad(data)
        spec = spec._replace(no_answer=spec.no_answer or not all(questions.answers))
    else:
        _check_distinct(spec.label_names, place)
        examples = _table(spec, data, *_columns(place, text_column, label_column, pair_column))
    kind, model = KINDS[spec.kind], predictor.model
    judged, size = kind.judged(predictor.tokenizer, examples, spec), batch or _BATCH
    forward = jax.jit(as_function(model))

    def score(params: Params) -> dict[str, Any]:
        return judged.score(predict(forward, params, judged, size, on_batch))

    loss = None if squad else kind.objective.loss  # answers are text, and no positions
    return Judge(model, score, lambda: eval_batches(judged, size), loss)


def _columns(place: Path, *chosen: str | None) -> tuple[str, str, str | None]:
    """Of text, label and second text: those chosen, else those of the run that `place` is of."""
    run = run_of(place)
    own = {} if run is None else run_record(run[0], "settings.json")
    names = ("text_column", "label_column", "pair_column")
    text, label, pair = (given or own.get(name) for name, given in zip(names, chosen, strict=True))
    return text or TEXT_COLUMN, label or LABEL_COLUMN, pair


def _text_column(place: Path, chosen: str | None) -> str:
    """Of a language model: the one chosen, else that of the run that `place` is of, or `text`."""
    run = run_of(place)
    own = {} if run is None else run_record(run[0], "settings.json")
    return chosen or own.get("text_column") or COLUMN


def _check_distinct(names: list[str], place: Path) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LpafError(
            f"{place}: id2label in config.json calls two classes {twice!r}, so its labels are "
            "ambiguous: give each class its own name"
        )


def _table(spec: TaskSpec, data: Path, text: str, label: str, pair: str | None) -> Examples:
    if spec.pairs and pair is None:
        raise LpafError(
            f"the model reads text pairs: name the column of the second text in {data} with "
            "--pair-column"
        )
    if spec.pairs is False and pair is not None:
        raise LpafError(f"the model reads single texts: leave --pair-column {pair} out")
    return read_examples(
        data,
        text_column=text,
        label_column=label,
        pair_column=pair,
        label_names=spec.label_names,
        regression=spec.kind == "regression",
    )
