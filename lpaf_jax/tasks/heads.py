"""The head that a checkpoint brings along, beside what a task asks of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lpaf_jax.checkpoints.headless import head_in
from lpaf_jax.checkpoints.outputs import answers_of, class_names
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json
from lpaf_jax.data.labels import canonical
from lpaf_jax.models import parameters, set_parameters
from lpaf_jax.models.families import FAMILIES, Head, family_name, named_head

# The layer that gives a classification, in RoBERTa, in the other encoders and in decoders.
_LAST = ("classifier.out_proj", "classifier", "score")
_MEND = "fine-tune it, with --finetune-epochs above 0"


def require_head(source: Path, task: str, head: Head, outputs: Sequence[str] | None) -> None:
    """See whether a checkpoint can serve a task as it is, without any fine-tuning.

    Args:
        source: folder of the checkpoint.
        task: name of the task.
        head: that the task needs.
        outputs: names of what the head is to give; None where it is not one of classification.

    Raises:
        LpafError: it has another head, outputs of another kind or number, or names for them of
            which some are the task's and some are not.
    """
    values = read_json(source / "config.json")
    if head_in(source) != head:
        named = named_head(values, FAMILIES[family_name(values, str(source))])
        raise LpafError(
            f"{source} has {'no' if named is None else f'a {named}'} head, but task {task} needs "
            f"a {head} head: {_MEND}"
        )
    if outputs is None:
        return
    answers_of(values, source)
    names = class_names(values, source)
    if len(names) != len(outputs):
        has = f"{len(names)} output{'s' if len(names) > 1 else ''}"
        raise LpafError(f"{source} has {has}, but the task needs {len(outputs)}: {_MEND}")
    theirs, ours = ({_key(name) for name in each} for each in (names, outputs))
    if theirs & ours and order_by_name(names, outputs) is None:
        raise LpafError(
            f"{source} has the classes {', '.join(names)}, and task {task} has "
            f"{', '.join(outputs)}, which match only in part: make the names equal, in the task "
            f"or under id2label in {source / 'config.json'}, or {_MEND}"
        )


def classes_of(source: Path) -> list[str]:
    """Names of the classes that a checkpoint tells apart, in the order of its outputs.

    Empty where its head is another one, or config.json does not name them all.
    """
    if head_in(source) != "classification":
        return []
    try:
        return class_names(read_json(source / "config.json"), source)
    except LpafError:
        return []


def order_by_name(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Where in `theirs` each name in `ours` stands; None unless both are the same set of names.

    Upper and lower case are the same where nothing else tells two names apart.
    """
    for key in (canonical, _key):
        given, wanted = [key(name) for name in theirs], [key(name) for name in ours]
        if given and sorted(given) == sorted(set(wanted)) == sorted(wanted):
            return [given.index(name) for name in wanted]
    return None


def put_in_order(model: Any, order: Sequence[int] | None) -> None:
    """Let output `i` of a classification head be the one that was `order[i]`; None is as it is."""
    if order is None:
        return
    params = parameters(model)
    last = next(path for path in _LAST if f"{path}.kernel" in params)
    paths = [path for path in (f"{last}.kernel", f"{last}.bias") if path in params]
    set_parameters(model, {path: params[path][..., jnp.array(order)] for path in paths})


def _key(name: str) -> str:
    return canonical(name).casefold()
