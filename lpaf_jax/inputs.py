"""What a run starts from: the task, its encoded splits, the folder of the model."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from lpaf_jax.data import GLUE, Encoded, Task, check_task_name, encode, load_task, load_tokenizer
from lpaf_jax.errors import LpafError, SettingError
from lpaf_jax.models import compressible, is_hub_id, load_model, parameters, resolve_model
from lpaf_jax.settings import Settings


class Inputs(NamedTuple):
    """Loaded and checked inputs.

    Attributes:
        source: folder of the pretrained model.
        positions: longest text it can read, in tokens.
        shapes: (m, n) of its compressible matrices.
        weight_bytes: size of all its weights.
    """

    source: Path
    positions: int
    shapes: list[tuple[int, int]]
    weight_bytes: int
    task: Task
    train: Encoded
    validation: Encoded
    test: Encoded


def load_inputs(settings: Settings) -> Inputs:
    """Find and read the model, read and split the data, tokenize it.

    Raises:
        LpafError: the model or the task is unknown, the weights are damaged or not dense, or the
            data cannot serve.
    """
    check_task_name(settings.task)  # before anything is fetched
    source = resolve_model(settings.model)
    positions, shapes, weight_bytes = _measure(source, settings)
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
    encoded = (encode(tokenizer, split, settings.length) for split in splits)
    return Inputs(source, positions, shapes, weight_bytes, task, *encoded)


def hub_names(settings: Settings) -> list[str]:
    """What of these settings is asked of the hub."""
    model = settings.model
    names = [model] if is_hub_id(model) else []
    return names + ([settings.task] if settings.task in GLUE and settings.data is None else [])


def _measure(source: Path, settings: Settings) -> tuple[int, list[tuple[int, int]], int]:
    model = load_model(source, num_labels=2)
    params = parameters(model)
    shapes = [(w.shape[0], w.shape[1]) for w in compressible(params).values()]
    if not shapes or any(path.endswith(".a") for path in params):
        raise LpafError(f"model {settings.model} is factorized already; start from a dense one")
    if settings.length > model.positions:
        raise SettingError(
            ("length",),
            f"is {settings.length}, but model {settings.model} reads {model.positions} tokens "
            "at most",
        )
    return model.positions, shapes, sum(x.nbytes for x in params.values())


def fingerprint(inputs: Inputs) -> str:
    """A digest of all that a run reads: examples as they are tokenized, class names, weights.

    A run that is continued, or lends its stages, is known by it: paths and names stay the same
    when what they name does not.
    """
    digest = hashlib.blake2b(repr(inputs.task.label_names).encode(), digest_size=16)
    for split in (inputs.train, inputs.validation, inputs.test):
        for part in (*split.ids, *split.types, split.labels):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part.tobytes())
    for path in sorted(inputs.source.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
