"""What a run starts from: the task, its encoded splits, the folder of the model."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lpaf_jax.data import (
    GLUE,
    SQUAD,
    Encoded,
    Questions,
    Task,
    Tokenizer,
    check_task_name,
    load_task,
    load_tokenizer,
)
from lpaf_jax.data.split import hash_sample
from lpaf_jax.data.squad import misplaced
from lpaf_jax.errors import LpafError, SettingError
from lpaf_jax.files import read_json
from lpaf_jax.heads import classes_of, order_by_name, require_head
from lpaf_jax.kinds import KINDS, Judged, Kind, Terms
from lpaf_jax.models import (
    compressible,
    is_hub_id,
    load_model,
    parameters,
    records_of,
    resolve_model,
)
from lpaf_jax.models.families import family_name
from lpaf_jax.models.weight_files import weight_files
from lpaf_jax.settings import Settings


class Inputs(NamedTuple):
    """Loaded and checked inputs.

    Attributes:
        source: folder of the pretrained model.
        family: of the model.
        positions: longest text it can read, in tokens.
        shapes: (m, n) of its compressible matrices.
        weight_bytes: size of all its weights.
        task: texts and labels.
        terms: what the model is to read, and by what it is judged.
        classes: names that the model's own head gives its classes; see `classes_of`.
        order: by `order_by_name`, from them to those of the task.
        train: of a question, every window that its context takes.
        validation: what is judged after every epoch.
    """

    source: Path
    family: str
    positions: int
    shapes: list[tuple[int, int]]
    weight_bytes: int
    task: Task
    terms: Terms
    classes: list[str]
    order: list[int] | None
    train: Encoded
    validation: Judged
    test: Judged

    @property
    def kind(self) -> Kind:
        """What the task asks of the model."""
        return KINDS[self.terms.kind]


def load_inputs(settings: Settings) -> Inputs:
    """Find and read the model, read and split the data, tokenize it.

    Raises:
        LpafError: the model or the task is unknown, the weights are damaged or not dense, the
            model cannot be given the head that the task needs, or the data cannot serve.
    """
    check_task_name(settings.task)  # before anything is fetched
    source = resolve_model(settings.model)
    task = load_task(
        settings.task,
        text_column=settings.text_column,
        label_column=settings.label_column,
        pair_column=settings.pair_column,
        data=settings.data,
        limit=settings.limit,
        regression=settings.regression,
    )
    terms = Terms(
        kind=task.kind,
        length=settings.tokens,
        label_names=task.label_names,
        metrics=task.metrics,
        pairs=task.test.pairs is not None,
        stride=settings.doc_stride,
        no_answer=settings.task == "squad_v2",
    )
    kind, tokenizer = KINDS[task.kind], load_tokenizer(source)
    positions, shapes, weight_bytes = _measure(source, settings, task.name, terms, tokenizer)
    classes = classes_of(source)
    held = task.validation
    if kind.validated is not None:
        held = hash_sample(held, kind.validated)
    return Inputs(
        source,
        family_name(read_json(source / "config.json"), str(source)),
        positions,
        shapes,
        weight_bytes,
        task,
        terms,
        classes,
        order_by_name(classes, task.label_names),
        *(kind.judged(tokenizer, split, terms) for split in (task.train, held, task.test)),
    )


def hub_names(settings: Settings) -> list[str]:
    """What of these settings is asked of the hub."""
    model = settings.model
    names = [model] if is_hub_id(model) else []
    published = settings.task in (*GLUE, *SQUAD) and settings.data is None
    return names + ([settings.task] if published else [])


def _measure(
    source: Path, settings: Settings, task: str, terms: Terms, tokenizer: Tokenizer
) -> tuple[int, list[tuple[int, int]], int]:
    kind = KINDS[terms.kind]
    if settings.finetune_epochs == 0:
        require_head(source, task, kind.head, kind.outputs(terms))
    model = first_model(source, settings, kind, terms)
    params = parameters(model)
    found = {} if records_of(model) else compressible(params)
    shapes = [(w.shape[0], w.shape[1]) for w in found.values()]
    if not shapes:
        raise LpafError(f"model {settings.model} is factorized already; start from a dense one")
    if settings.tokens > model.positions:
        raise SettingError(
            ("length",),
            f"is {settings.tokens}, but model {settings.model} reads {model.positions} tokens "
            "at most",
        )
    if hasattr(model, "pad_token_id"):
        _check_padding(settings.model, model.pad_token_id, tokenizer.pad_id)
    return model.positions, shapes, sum(x.nbytes for x in params.values())


def first_model(source: Path, settings: Settings, kind: Kind, terms: Terms) -> Any:
    """The pretrained model with a head for the task, which is drawn where it has none that fits.

    No head is drawn that nothing would train: without fine-tuning the model's own is taken.

    Raises:
        LpafError: see `load_model`.
    """
    if settings.finetune_epochs == 0:
        return load_model(source)
    outputs = kind.outputs(terms)
    number = None if outputs is None else len(outputs)
    return load_model(source, head=kind.head, num_labels=number, seed=settings.seed)


def _check_padding(name: str, own: int | None, used: int) -> None:
    """A decoder classifies by the last token that is no padding, which it must tell apart."""
    if own is None:
        raise LpafError(
            f"model {name} has no pad token, by which a classifier knows where a text ends; give "
            "its config.json a pad_token_id, such as its eos_token_id"
        )
    if own != used:
        raise LpafError(
            f"model {name} has pad_token_id {own} in config.json, but its tokenizer pads with "
            f"{used}; make them the same"
        )


def fingerprint(inputs: Inputs) -> dict[str, Any]:
    """Digests of all that a run reads: examples as they are tokenized, class names, weights.

    A run that is continued, or lends its stages, is known by that of the `whole`: paths and names
    stay the same when what they name does not. The others, by what they are of, tell what has
    changed.
    """
    whole = hashlib.blake2b(repr(inputs.task.label_names).encode(), digest_size=16)
    found: dict[str, Any] = {"classes": inputs.task.label_names}

    def add(name: str, pieces: Iterable[bytes]) -> None:
        own = hashlib.blake2b(digest_size=16)
        for piece in pieces:
            whole.update(piece)
            own.update(piece)
        found[name] = own.hexdigest()

    if inputs.order is not None and inputs.order != sorted(inputs.order):
        add("order of the model's classes", [repr(inputs.order).encode()])
    for name, split in (
        ("training examples", inputs.train),
        ("validation examples", inputs.validation),
        ("test examples", inputs.test),
    ):
        add(name, _bytes(split))
    held = (inputs.task.validation, inputs.task.test)
    # What is right is no token there, but text.
    answers = [repr((q.pairs, q.answers)).encode() for q in held if isinstance(q, Questions)]
    if answers:
        add("right answers", answers)
    files = sorted(inputs.source.glob("*.safetensors")) or weight_files(inputs.source)
    add("weights", map(_file_digest, files))
    return {"whole": whole.hexdigest(), **found}


def _bytes(split: Encoded) -> Iterator[bytes]:
    for part in (*split.ids, *split.types, split.labels):
        yield len(part).to_bytes(8, "big")
        yield part.tobytes()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def counts(inputs: Inputs) -> dict[str, float]:
    """How many examples there are, and what the limit on their length did to the training data."""
    most = inputs.kind.validated
    held = len(inputs.task.validation)
    found: dict[str, float] = {
        "train": len(inputs.task.train),
        "validation": held if most is None else min(held, most),
        "test": len(inputs.task.test),
    }
    if inputs.terms.kind == "span":
        return found | {"windows": len(inputs.train)}
    return found | {"share_cut": round(_share_cut(inputs), 4)}


def about_repeats(inputs: Inputs) -> str | None:
    """What is to be said of rows that were left out, if any were."""
    return inputs.task.left_out


def about_classes(settings: Settings, inputs: Inputs) -> str | None:
    """What is to be said where nothing tells which class of the model is which of the task.

    A head that is to be fine-tuned learns it.
    """
    if settings.finetune_epochs or not inputs.task.label_names or inputs.order is not None:
        return None
    theirs, ours = ", ".join(inputs.classes), ", ".join(inputs.task.label_names)
    return (
        f"the classes {theirs} of {settings.model} are taken as {ours} of the task, in this order: "
        f"if they are others, name them under id2label in {inputs.source / 'config.json'}"
    )


def about_places(inputs: Inputs) -> str | None:
    """What is amiss with where the answers of the training questions are said to be, if anything.

    Nothing else tells: the model would learn the labels, wrong as they are.
    """
    questions = inputs.task.train
    count = misplaced(questions) if isinstance(questions, Questions) else 0
    if not count:
        return None
    return (
        f"{count} of {len(questions)} training answers are not found in their context at their "
        "answer_start: what is there is learnt"
    )


def about_length(inputs: Inputs) -> str | None:
    """What is to be said of the length of texts, if anything."""
    terms = inputs.terms
    if terms.kind == "span":
        shared = f"{terms.overlap} of them shared with the next"
        if terms.overlap < terms.stride:
            shared += f": --doc-stride {terms.stride} is more than a third of a window"
        return f"contexts make {len(inputs.train)} windows of {terms.length} tokens, {shared}"
    cut = _share_cut(inputs)
    if cut <= 0.01:
        return None
    return (
        f"{cut:.0%} of the texts have {terms.length} tokens or more, where they are cut; --length "
        "sets another limit"
    )


def _share_cut(inputs: Inputs) -> float:
    """Share of the training texts that fill the limit, and may have been longer."""
    limit = inputs.train.max_length
    return sum(len(ids) == limit for ids in inputs.train.ids) / len(inputs.train)
