"""Texts without labels that the fine-tuned model answers, to learn from beside the task's own."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import Encoded, Examples, encode, load_tokenizer
from lpaf_jax.data.split import normalise
from lpaf_jax.data.tables import TEXT_COLUMN, text_lines
from lpaf_jax.models import as_function, parameters
from lpaf_jax.stages.base import Context
from lpaf_jax.tasks.inputs import Inputs
from lpaf_jax.train import predict

_BATCH = 64


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
    progress.say(f"transfer: {len(texts):,} texts of {path}, none of them in validation or test")
    tokenizer = load_tokenizer(inputs.source)
    extra = encode(tokenizer, texts, inputs.spec.length)
    model = load_model(teacher)
    logits = predict(jax.jit(as_function(model)), parameters(model), extra, _BATCH)
    own = inputs.train
    return Encoded(
        ids=[*own.ids, *extra.ids],
        types=[*own.types, *extra.types],
        labels=np.concatenate([own.labels, answers(logits, own.labels.dtype)]),
        max_length=own.max_length,
        pad_id=own.pad_id,
    )


def unseen(inputs: Inputs, texts: Examples) -> Examples:
    """Those of the texts that are none of the validation or test split, whatever case or spaces.

    Raises:
        LpafError: none is left.
    """
    held: list[Any] = [inputs.task.validation, inputs.task.test]
    taken = {normalise(text) for split in held for text in split.texts}
    places = [i for i, text in enumerate(texts.texts) if normalise(text) not in taken]
    if not places:
        raise LpafError("every text of --transfer is in the validation or test split of the task")
    return texts.take(np.array(places))


def answers(logits: np.ndarray, dtype: Any) -> np.ndarray:
    """Labels of a task from a model's logits, (n, classes) or (n, 1)."""
    found = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(-1)
    return found.astype(dtype)
