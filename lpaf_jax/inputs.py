"""What a run starts from: the task, its encoded splits, the folder of the model."""

from pathlib import Path
from typing import NamedTuple

from lpaf_jax.data import Encoded, Task, encode, load_task, load_tokenizer
from lpaf_jax.models import resolve_model
from lpaf_jax.settings import Settings


class Inputs(NamedTuple):
    """Loaded and checked inputs; `source` is the folder of the pretrained model."""

    source: Path
    task: Task
    train: Encoded
    validation: Encoded
    test: Encoded


def load_inputs(settings: Settings) -> Inputs:
    """Find the model, read and split the data, tokenize it.

    Raises:
        LpafError: the model or the task is unknown, or the data cannot serve.
    """
    source = resolve_model(settings.model)
    task = load_task(
        settings.task,
        text_column=settings.text_column,
        label_column=settings.label_column,
        pair_column=settings.pair_column,
        data=settings.data,
        limit=settings.limit,
    )
    tokenizer = load_tokenizer(source)
    splits = (task.train, task.validation, task.test)
    return Inputs(source, task, *(encode(tokenizer, split, settings.length) for split in splits))
