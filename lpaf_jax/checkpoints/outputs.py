"""The outputs of a classification head by `config.json`, read as `transformers` reads it."""

from pathlib import Path
from typing import Any, Literal

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.configs import label_map, plain_values

# What `transformers` takes where config.json does not say how many outputs there are.
_DEFAULT = 2


def class_names(values: dict[str, Any], place: Path) -> list[str]:
    """The name of each output, in order.

    They are LABEL_0, LABEL_1, ... where `id2label` is absent or null, or has not as many names as
    `num_labels` says. Integers and other plain values are names as they are written. `label2id`
    alone names nothing.

    Args:
        values: a parsed `config.json`. place: its folder.

    Raises:
        LpafError: there is no output, or `id2label` does not name every one.
    """
    number, names = _number(values, place), label_map(values)
    if names is None or len(names) != number:
        return [f"LABEL_{i}" for i in range(number)]
    if names.keys() != set(range(number)):
        numbered = ", ".join(map(str, sorted(names)))
        raise LpafError(
            f"{place}: id2label in config.json names the outputs {numbered}, but they are numbered "
            f"from 0 to {number - 1}: correct the numbers"
        )
    for i, name in names.items():
        if not isinstance(name, str | int | float):
            raise LpafError(
                f"{place}: id2label in config.json has {name!r} for output {i}; write a name there"
            )
    # Half of an emoji, which JSON may hold, cannot be printed.
    whole = (str(names[i]).encode("utf-16", "surrogatepass") for i in range(number))
    return [name.decode("utf-16", "replace") for name in whole]


def answers_of(values: dict[str, Any], place: Path) -> Literal["classification", "regression"]:
    """What the outputs are: one class of several, or one number.

    Args:
        values: a parsed `config.json`. place: its folder.

    Raises:
        LpafError: `problem_type` says that they are something else.
    """
    number = _number(values, place)
    said = str(values.get("problem_type"))
    fits = {
        "single_label_classification": number > 1,
        "multi_label_classification": False,
        "regression": number == 1,
    }
    if not fits.get(said, True):
        outputs = f"{number} output{'s' if number > 1 else ''}"
        raise LpafError(
            f"{place} has {outputs} of problem_type {said} (config.json), which is not supported: "
            "a head must predict one class or one number"
        )
    return "regression" if number == 1 else "classification"


def _number(values: dict[str, Any], place: Path) -> int:
    number: int = plain_values(values).get("num_labels", _DEFAULT)
    if number < 1:
        raise LpafError(f"{place}: config.json gives the head {number} outputs; it needs one")
    return number
