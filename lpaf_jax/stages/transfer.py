"""Texts without labels that the fine-tuned model answers, to learn from beside the task's own."""

import html
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import Encoded, Examples, encode, load_tokenizer
from lpaf_jax.data.tables import TEXT_COLUMN, text_lines
from lpaf_jax.models import as_function, parameters
from lpaf_jax.stages.base import Context
from lpaf_jax.tasks.inputs import Inputs
from lpaf_jax.train import predict

_BATCH = 64
# So many words in a row that two texts share are no chance.
_RUN = 8


def with_transfer(context: Context, path: Path, count: int, teacher: Path) -> Encoded:
    """The training examples, and those of a file with the teacher's answers for labels.

    Args:
        context: of the stage that learns.
        path: a text in each line, or a table with a column of texts.
        count: so many texts at most, spread over the file.
        teacher: folder of the model that answers.

    Raises:
        LpafError: the file cannot be read, or is left with no text.
    """
    inputs, progress = context.inputs, context.progress
    texts = unseen(inputs, text_lines(path, TEXT_COLUMN, count))
    progress.say(
        f"transfer: {len(texts):,} texts from {path}, none of them in the validation or test split"
    )
    tokenizer = load_tokenizer(inputs.source)
    extra = encode(tokenizer, texts, inputs.spec.length)
    model = load_model(teacher)
    on_batch = partial(progress.batch, "dense model on texts to learn from")
    logits = predict(jax.jit(as_function(model)), parameters(model), extra, _BATCH, on_batch)
    own = inputs.train
    return Encoded(
        ids=[*own.ids, *extra.ids],
        types=[*own.types, *extra.types],
        labels=np.concatenate([own.labels, answers(logits, own.labels.dtype)]),
        max_length=own.max_length,
        pad_id=own.pad_id,
    )


def unseen(inputs: Inputs, texts: Examples) -> Examples:
    """Those of the texts of which nothing is in the validation or test split.

    A text is left out if eight words in a row of it, or all where it has fewer, are in a held text
    (of fewer than eight: are one), whatever the case, marks and markup between them.

    Raises:
        LpafError: none is left.
    """
    splits: list[Any] = [inputs.task.validation, inputs.task.test]
    runs = [_runs(text) for text in texts.texts]
    known = set().union(*runs)
    held = {run for split in splits for text in split.texts for run in _runs(text) & known}
    places = [i for i, each in enumerate(runs) if held.isdisjoint(each)]
    if not places:
        raise LpafError("every text of --transfer is in the validation or test split of the task")
    return texts.take(np.array(places))


def _runs(text: str) -> set[str]:
    words = re.findall(r"\w+", re.sub(r"<[^<>]*>", " ", html.unescape(text)).casefold())
    return {" ".join(words[i : i + _RUN]) for i in range(max(1, len(words) - _RUN + 1))}


def answers(logits: np.ndarray, dtype: Any) -> np.ndarray:
    """Labels of a task from a model's logits, (n, classes) or (n, 1)."""
    found = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(-1)
    return found.astype(dtype)
