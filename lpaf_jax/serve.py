"""A saved model put to use: evaluate a file, label lines."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lpaf_jax.data import (
    Encoded,
    Examples,
    Tokenizer,
    classification_metrics,
    encode,
    load_tokenizer,
    read_examples,
)
from lpaf_jax.errors import LpafError
from lpaf_jax.files import read_json
from lpaf_jax.folders import model_folder
from lpaf_jax.models import BertClassifier, as_function, load_model, parameters
from lpaf_jax.train import predict

_LENGTH = 128


@dataclass(frozen=True)
class Classifier:
    """A model, its tokenizer and the names of its classes.

    Attributes:
        length: longest text in tokens; what is longer is cut.
        pairs: whether it reads two texts; None where its config.json does not say.
    """

    model: BertClassifier
    tokenizer: Tokenizer
    label_names: list[str]
    length: int
    pairs: bool | None

    def logits(self, data: Encoded, batch: int) -> np.ndarray:
        """Logits of all examples, (n, labels)."""
        forward = jax.jit(as_function(self.model))
        return predict(forward, parameters(self.model), data, batch)

    def predict(self, texts: Iterable[str], batch: int = 32) -> Iterator[tuple[str, str, float]]:
        """`(text, label, probability)` of each text, in order, `batch` texts at a time.

        A model of text pairs reads both from one string, with a tab between them. Lazy in its
        input: no more than `batch` texts are drawn before the first is answered.

        Raises:
            LpafError: `batch` is less than 1, or a text is no pair where it must be one; all
                texts before it have been answered then.
        """
        _check_batch(batch)
        forward, params = jax.jit(as_function(self.model)), parameters(self.model)
        stream, answered = iter(texts), 0
        while drawn := list(islice(stream, batch)):
            chunk = list(takewhile(self._can_read, drawn))
            if chunk:
                encoded = encode(self.tokenizer, self._examples(chunk), self.length)
                logits = predict(forward, params, encoded, batch)
                shifted = np.exp(logits - logits.max(-1, keepdims=True))
                probabilities = shifted / shifted.sum(-1, keepdims=True)
                for text, row in zip(chunk, probabilities, strict=True):
                    yield text, self.label_names[int(row.argmax())], float(row.max())
            answered += len(chunk)
            if len(chunk) < len(drawn):
                raise LpafError(
                    f"line {answered + 1}: the model reads two texts a line with a tab between: "
                    f"{drawn[len(chunk)]!r}"
                )

    def _can_read(self, text: str) -> bool:
        return not self.pairs or text.count("\t") == 1

    def _examples(self, texts: list[str]) -> Examples:
        labels = np.zeros(len(texts), np.int32)
        if not self.pairs:
            return Examples(texts, None, labels)
        parts = [text.split("\t") for text in texts]
        return Examples([first for first, _ in parts], [second for _, second in parts], labels)


def load_classifier(folder: Path, *, stage: str = "final", length: int | None = None) -> Classifier:
    """The model after `stage` of the run in `folder`, or the model that `folder` itself is.

    Args:
        folder: of a run or of a model.
        stage: dense, pruned, factorized or final; a model folder is its own final stage.
        length: longest text in tokens; None takes what the model was trained with.

    Raises:
        LpafError: there is no such folder or stage, its files are damaged, or the model cannot
            read so long a text.
    """
    place = model_folder(folder, stage)
    config = read_json(place / "config.json")
    names, reads = config.get("id2label"), config.get("lpaf_reads", {})
    if not names:
        raise LpafError(f"{place} has no classification head: config.json names no labels")
    model = load_model(place)
    own = reads.get("length", _LENGTH)
    length = _length(own, model.positions, length)
    label_names = [names[str(i)] for i in range(len(names))]
    return Classifier(model, load_tokenizer(place), label_names, length, reads.get("pairs"))


def _length(own: int, positions: int, chosen: int | None) -> int:
    if chosen is None:
        return min(own, positions)
    if chosen > positions:
        raise LpafError(f"length is {chosen}, but the model reads {positions} tokens at most")
    return chosen


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise LpafError(f"batch is {batch}, but must be at least 1")


def evaluate_file(
    folder: Path,
    data: Path,
    *,
    stage: str = "final",
    text_column: str = "sentence",
    label_column: str = "label",
    pair_column: str | None = None,
    batch: int = 32,
    length: int | None = None,
) -> dict[str, Any]:
    """Figures of a saved model on a labelled file; see `lpaf evaluate`.

    Raises:
        LpafError: the model cannot be loaded, or the file is not what the columns say.
    """
    _check_batch(batch)
    classifier = load_classifier(folder, stage=stage, length=length)
    if classifier.pairs and pair_column is None:
        raise LpafError(f"the model reads two texts: name {data}'s second one with --pair-column")
    if classifier.pairs is False and pair_column is not None:
        raise LpafError(f"the model reads one text: leave --pair-column {pair_column} out")
    examples = read_examples(
        data,
        text_column=text_column,
        label_column=label_column,
        pair_column=pair_column,
        label_names=classifier.label_names,
    )
    logits = classifier.logits(encode(classifier.tokenizer, examples, classifier.length), batch)
    return classification_metrics(examples.labels, logits.argmax(-1), classifier.label_names)
