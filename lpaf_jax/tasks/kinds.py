"""What each kind of task asks of a model: a head, an objective, and a judge of its answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from lpaf_jax.core.errors import SettingError
from lpaf_jax.data import (
    METRICS,
    Encoded,
    Examples,
    Packed,
    Questions,
    Tokenizer,
    encode,
    encode_questions,
    find_answers,
    mean_kl,
    pack,
    perplexity,
    span_metrics,
    task_metrics,
)
from lpaf_jax.data.examples import Kind as KindName
from lpaf_jax.models.families import Head
from lpaf_jax.models.functional import Batch, Forward
from lpaf_jax.train import CLASSIFICATION, LANGUAGE, REGRESSION, SPANS, Objective, log_likelihood

# Windows of a context may share a third of their tokens and no more: where the question takes half
# of a window, the next one still shows something new.
_SHARED = 3


class TaskSpec(NamedTuple):
    """What a model reads, and by what its answers are judged; a saved model carries them along.

    Attributes:
        kind: of the task.
        length: longest text, or window of a context or text, in tokens.
        label_names: of the classes, in order; empty unless the task is a classification.
        metrics: the official ones, the primary one first.
        pairs: whether it reads two texts; None where nobody knows.
        stride: what two windows of a context may have in common, in tokens.
        no_answer: whether a question may have no answer, as in SQuAD v2.0.
    """

    kind: KindName
    length: int
    label_names: list[str]
    metrics: tuple[str, ...]
    pairs: bool | None
    stride: int
    no_answer: bool

    @property
    def overlap(self) -> int:
        """What two windows do have in common: a third of them at most."""
        return min(self.stride, self.length // _SHARED)

    def saved(self) -> dict[str, Any]:
        """What `lpaf_reads` in config.json says of them; names of classes have a place there."""
        own: dict[str, Any] = {"length": self.length}
        if self.kind != "language":
            own["pairs"] = self.pairs
        if self.kind == "span":
            own |= {"stride": self.stride, "no_answer": self.no_answer}
        return own | {"metrics": list(self.metrics)}


def spec_of(
    kind: KindName, reads: Mapping[str, Any], label_names: list[str], *, length: int, stride: int
) -> TaskSpec:
    """The spec in `reads`, a saved `lpaf_reads`; what it does not say is as for any such task."""
    return TaskSpec(
        kind=kind,
        length=length,
        label_names=label_names if kind == "classification" else [],
        metrics=tuple(reads.get("metrics", METRICS[kind])),
        pairs=True if kind == "span" else reads.get("pairs"),
        stride=reads.get("stride", stride),
        no_answer=reads.get("no_answer", False),
    )


def length_for(chosen: int | None, usual: int, positions: int) -> int:
    """How many tokens of a text are read at most: those chosen, else the usual or all that fit.

    Raises:
        SettingError: more are chosen than a model of that many `positions` reads.
    """
    if chosen is None:
        return min(usual, positions)
    if chosen > positions:
        raise SettingError(
            ("length",), f"is {chosen}, but the model reads at most {positions} tokens"
        )
    return chosen


@dataclass(frozen=True)
class EvalSet(Encoded):
    """Tokenized examples, and what is made of a model's logits for them.

    Attributes:
        score: from the logits of all, as `predict` gives them, to the official metrics.
        right: from the logits to which answers are right, (n,); None where answers are not
            simply right or wrong.
        reduce: from the logits of a batch, and the batch, to what `score` takes in their place:
            those of a vocabulary cannot be kept for all examples.
        left_out: tokens of a text that fill no window.
        divergence: from the logits of two models to how far the answers of the second are from
            those of the first; None where they are not kept.
    """

    score: Callable[[np.ndarray], dict[str, Any]]
    right: Callable[[np.ndarray], np.ndarray] | None
    reduce: Callable[[Array, Batch], Array] | None = None
    left_out: int = 0
    divergence: Callable[[np.ndarray, np.ndarray], float] | None = None

    def judging(self, forward: Forward) -> Forward:
        """`forward` with `reduce` after it, to be compiled as one: what `predict` is to call."""
        reduce = self.reduce
        if reduce is None:
            return forward
        return lambda params, fixed, batch: reduce(forward(params, fixed, batch), batch)


class Kind(NamedTuple):
    """A kind of task.

    Attributes:
        head: of the model.
        outputs: names of what a head for classification gives, in order; None for other heads.
        objective: what training holds the head to.
        judged: tokenizes examples.
        validated: at most so many examples are judged after every epoch.
    """

    head: Head
    outputs: Callable[[TaskSpec], list[str] | None]
    objective: Objective
    judged: Callable[[Tokenizer, Any, TaskSpec], EvalSet]
    validated: int | None = None


def _classes(tokenizer: Tokenizer, examples: Examples, spec: TaskSpec) -> EvalSet:
    encoded = encode(tokenizer, examples, spec.length)
    return EvalSet(
        **vars(encoded),
        score=lambda logits: task_metrics(
            spec.metrics, encoded.labels, logits.argmax(-1), spec.label_names
        ),
        right=lambda logits: logits.argmax(-1) == encoded.labels,
        divergence=mean_kl,
    )


def _values(tokenizer: Tokenizer, examples: Examples, spec: TaskSpec) -> EvalSet:
    encoded = encode(tokenizer, examples, spec.length)
    return EvalSet(
        **vars(encoded),
        score=lambda values: task_metrics(spec.metrics, encoded.labels, values[:, 0], []),
        right=None,
        divergence=lambda first, second: float(np.mean(np.square(first - second))),
    )


def _spans(tokenizer: Tokenizer, questions: Questions, spec: TaskSpec) -> EvalSet:
    windows = encode_questions(tokenizer, questions, spec.length, spec.overlap)

    def score(logits: np.ndarray) -> dict[str, Any]:
        found = find_answers(questions, windows, logits, n_best=1)
        without = [one.no_answer for one in found] if spec.no_answer else None
        return span_metrics(questions.answers, [one.text for one in found], without)

    return EvalSet(**vars(windows.encoded), score=score, right=None)


def _windows(tokenizer: Tokenizer, examples: Examples, spec: TaskSpec) -> EvalSet:
    return judged_windows(pack(tokenizer, examples.texts, spec.length))


def judged_windows(windows: Packed) -> EvalSet:
    """Windows of a text, judged by the perplexity of their tokens."""

    def score(sums: np.ndarray) -> dict[str, Any]:
        # The first of a window has nothing before it.
        tokens = sums.size * (windows.max_length - 1)
        found = perplexity(float(sums.sum(dtype=np.float64)), tokens)
        return {"perplexity": found, "tokens": tokens, "n": sums.size, "primary": "perplexity"}

    return EvalSet(**vars(windows), score=score, right=None, reduce=log_likelihood)


KINDS: Mapping[KindName, Kind] = {
    "classification": Kind(
        "classification", lambda spec: spec.label_names, CLASSIFICATION, _classes
    ),
    "regression": Kind("classification", lambda spec: ["score"], REGRESSION, _values),
    # To find the best span of a window takes longer than a small model takes to read it.
    "span": Kind("span", lambda spec: None, SPANS, _spans, validated=2000),
    "language": Kind("lm", lambda spec: None, LANGUAGE, _windows),
}
