"""What a run starts from: the task, its encoded splits, the folder of the model."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lpaf_jax.checkpoints import is_hub_id, load_model, records_of, resolve_model
from lpaf_jax.checkpoints.weight_files import weight_files
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.files import read_json
from lpaf_jax.data import (
    TASK_NAMES,
    Encoded,
    Questions,
    Task,
    Tokenizer,
    check_task_name,
    load_task,
    load_tokenizer,
)
from lpaf_jax.data.language import sample
from lpaf_jax.data.movie_reviews import SOURCES
from lpaf_jax.data.split import hash_sample
from lpaf_jax.data.squad import misplaced
from lpaf_jax.models import compressible, parameters
from lpaf_jax.models.families import FAMILIES, family_name
from lpaf_jax.tasks.heads import classes_of, order_by_name, put_in_order, require_head
from lpaf_jax.tasks.kinds import KINDS, EvalSet, Kind, TaskSpec
from lpaf_jax.tasks.options import Options


class Inputs(NamedTuple):
    """Loaded and checked inputs.

    Attributes:
        source: folder of the pretrained model.
        family: of the model.
        positions: longest text it can read, in tokens.
        shapes: (m, n) of its compressible matrices.
        biases: whether the layer of each has a bias, by path.
        weight_bytes: size of all its weights.
        task: texts and labels.
        spec: what the model is to read, and by what it is judged.
        classes: names that the model's own head gives its classes; see `classes_of`.
        order: by `order_by_name`, from them to those of the task.
        trains_head: whether fine-tuning trains the head; else it is the model's own.
        train: of a question, every window that its context takes; of a text, its windows, as the
            others.
        validation: what is judged after every epoch.
    """

    source: Path
    family: str
    positions: int
    shapes: list[tuple[int, int]]
    biases: dict[str, bool]
    weight_bytes: int
    task: Task
    spec: TaskSpec
    classes: list[str]
    order: list[int] | None
    trains_head: bool
    train: EvalSet
    validation: EvalSet
    test: EvalSet

    @property
    def kind(self) -> Kind:
        """What the task asks of the model."""
        return KINDS[self.spec.kind]


def load_inputs(options: Options) -> Inputs:
    """Find and read the model, read and split the data, tokenize it.

    A head that is to be trained is drawn where the model has none that fits; else the model must
    bring its own.

    Raises:
        LpafError: the model or the task is unknown, the weights are damaged or not dense, the
            model cannot be given the head that the task needs, or the data cannot serve.
    """
    assert options.task is not None
    check_task_name(options.task)  # before anything is fetched
    source = resolve_model(options.model)
    if options.reads_text:
        _check_decoder(source, options)
    task = load_task(
        options.task,
        text_column=options.text_column,
        label_column=options.label_column,
        pair_column=options.pair_column,
        data=options.data,
        limit=None if options.reads_text else options.limit,  # which is of windows
        regression=options.regression,
        language_model=options.language_model,
    )
    spec = TaskSpec(
        kind=task.kind,
        length=options.tokens,
        label_names=task.label_names,
        metrics=task.metrics,
        pairs=task.test.pairs is not None,
        stride=options.doc_stride,
        no_answer=options.task == "squad_v2",
    )
    kind, tokenizer = KINDS[task.kind], load_tokenizer(source)
    positions, shapes, biases, weight_bytes = _measure(source, options, task.name, spec, tokenizer)
    classes = classes_of(source)
    held = task.validation
    if kind.validated is not None:
        held = hash_sample(held, kind.validated)
    splits = (task.train, held, task.test)
    train, validation, test = (kind.judged(tokenizer, split, spec) for split in splits)
    if options.reads_text and options.limit is not None:
        train = sample(train, options.limit)
    return Inputs(
        source,
        family_name(read_json(source / "config.json"), str(source)),
        positions,
        shapes,
        biases,
        weight_bytes,
        task,
        spec,
        classes,
        order_by_name(classes, task.label_names),
        options.trains_head,
        train,
        validation,
        test,
    )


def _check_decoder(source: Path, options: Options) -> None:
    """An encoder reads what comes after a token, too, and so learns nothing by predicting it."""
    name = family_name(read_json(source / "config.json"), str(source))
    if "lm" not in FAMILIES[name].heads:
        decoders = ", ".join(family for family in FAMILIES if "lm" in FAMILIES[family].heads)
        raise LpafError(
            f"{options.model} is an encoder ({name}), but {options.task} needs a language model: "
            f"use a decoder ({decoders}), or a task with labels"
        )


def hub_names(options: Options) -> list[str]:
    """What of these options is asked of the hub."""
    names = [options.model] if is_hub_id(options.model) else []
    packaged = options.task in SOURCES
    published = options.task in TASK_NAMES and not packaged and options.data is None
    return names + ([str(options.task)] if published else [])


def _measure(
    source: Path, options: Options, task: str, spec: TaskSpec, tokenizer: Tokenizer
) -> tuple[int, list[tuple[int, int]], dict[str, bool], int]:
    kind = KINDS[spec.kind]
    if not options.trains_head:
        require_head(source, task, kind.head, kind.outputs(spec))
    model = _with_head(source, spec, options.trains_head, options.seed)
    params = parameters(model)
    found = {} if records_of(model) else compressible(params)
    shapes = [(w.shape[0], w.shape[1]) for w in found.values()]
    if not shapes:
        raise LpafError(f"model {options.model} is already factorized; start from a dense one")
    if options.tokens > model.positions:
        raise SettingError(
            ("length",),
            f"is {options.tokens}, but model {options.model} reads at most {model.positions} "
            "tokens",
        )
    if hasattr(model, "pad_token_id"):
        _check_padding(options.model, model.pad_token_id, tokenizer.pad_id)
    places = [path.removesuffix(".kernel") for path in found]
    biases = {place: f"{place}.bias" in params for place in places}
    return model.positions, shapes, biases, sum(x.nbytes for x in params.values())


def first_model(inputs: Inputs, seed: int) -> Any:
    """The pretrained model with a head for the task, which is drawn where it has none that fits.

    The classes of a head of its own are put in the order of the task. No head is drawn that nothing
    would train: without fine-tuning the model's own is taken.

    Raises:
        LpafError: see `load_model`.
    """
    model = _with_head(inputs.source, inputs.spec, inputs.trains_head, seed)
    put_in_order(model, inputs.order)
    return model


def _with_head(source: Path, spec: TaskSpec, trains_head: bool, seed: int) -> Any:
    if not trains_head:
        return load_model(source)
    kind = KINDS[spec.kind]
    outputs = kind.outputs(spec)
    number = None if outputs is None else len(outputs)
    return load_model(source, head=kind.head, num_labels=number, seed=seed)


def _check_padding(name: str, own: int | None, used: int) -> None:
    """A decoder classifies by the last token that is no padding, which it must tell apart."""
    if own is None:
        raise LpafError(
            f"model {name} has no pad token, which a classifier needs to find the end of a text: "
            "set pad_token_id in its config.json, for example to its eos_token_id"
        )
    if own != used:
        raise LpafError(
            f"model {name} has pad_token_id {own} in config.json, but its tokenizer pads with "
            f"{used}: make them the same"
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
    if inputs.spec.kind == "language":
        return _count_windows(inputs)
    most = inputs.kind.validated
    held = len(inputs.task.validation)
    found: dict[str, float] = {
        "train": len(inputs.task.train),
        "validation": held if most is None else min(held, most),
        "test": len(inputs.task.test),
    }
    if inputs.spec.kind == "span":
        return found | {"windows": len(inputs.train)}
    return found | {"share_cut": round(_share_cut(inputs), 4)}


def _count_windows(inputs: Inputs) -> dict[str, float]:
    splits = {"train": inputs.train, "validation": inputs.validation, "test": inputs.test}
    return {
        **{name: len(split) for name, split in splits.items()},
        "window": inputs.spec.length,
        "left_out": sum(split.left_out for split in splits.values()),
    }


def repeats_note(inputs: Inputs) -> str | None:
    """What is to be said of rows that were left out, if any were."""
    return inputs.task.left_out


def classes_note(model: str, inputs: Inputs) -> str | None:
    """What is to be said where nothing tells which class of the model is which of the task.

    A head that is to be fine-tuned learns it.
    """
    if inputs.trains_head or not inputs.task.label_names or inputs.order is not None:
        return None
    theirs, ours = ", ".join(inputs.classes), ", ".join(inputs.task.label_names)
    return (
        f"the classes {theirs} of {model} are taken to be {ours} of the task, in this order; if "
        f"that is wrong, name them under id2label in {inputs.source / 'config.json'}"
    )


def misplaced_note(inputs: Inputs) -> str | None:
    """What is amiss with where the answers of the training questions are said to be, if anything.

    Nothing else tells: the model would learn the labels, wrong as they are.
    """
    questions = inputs.task.train
    count = misplaced(questions) if isinstance(questions, Questions) else 0
    if not count:
        return None
    return (
        f"{count} of {len(questions)} training answers are not at their answer_start in the "
        "context; the model learns the text that is there"
    )


def length_note(inputs: Inputs) -> str | None:
    """What is to be said of the length of texts, if anything."""
    spec = inputs.spec
    if spec.kind == "span":
        shared = f"{spec.overlap} of them shared with the next"
        if spec.overlap < spec.stride:
            shared += f", as --doc-stride {spec.stride} is more than a third of a window"
        return f"contexts give {len(inputs.train)} windows of {spec.length} tokens, {shared}"
    if spec.kind == "language":
        found = counts(inputs)
        return (
            f"windows of {spec.length} tokens: {found['train']} for training, "
            f"{found['validation']} for validation, {found['test']} for testing; "
            f"{found['left_out']} tokens at the ends are left out"
        )
    cut = _share_cut(inputs)
    if cut <= 0.01:
        return None
    return (
        f"{cut:.0%} of the texts have {spec.length} tokens or more and are truncated there; "
        "--length sets another limit"
    )


def _share_cut(inputs: Inputs) -> float:
    """Share of the training texts that fill the limit, and may have been longer."""
    limit = inputs.train.max_length
    return sum(len(ids) == limit for ids in inputs.train.ids) / len(inputs.train)
