"""What is the same in a `config.json` of every family."""

import json
from collections.abc import Mapping
from typing import Any

from lpaf_jax.core.errors import LpafError


def plain_values(
    values: dict[str, Any], aliases: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A parsed `config.json` in the names of its family, with the number of labels in it.

    Args:
        values: as parsed.
        aliases: name that transformers takes as well -> the family's own. As there, what stands
            under the first goes before what stands under the second.

    `num_labels` is, where it is not said, the length of `id2label`; a null one says nothing.

    Raises:
        LpafError: the number of labels is none.
    """
    named = {own: values[name] for name, own in (aliases or {}).items() if name in values}
    found = values | named
    if found.get("num_labels") is None:
        found.pop("num_labels", None)
        labels = label_map(found)
        if labels is not None:
            found["num_labels"] = len(labels)
    elif not isinstance(found["num_labels"], int):
        raise LpafError(
            f"config.json: num_labels is {found['num_labels']!r}, but must be a whole number"
        )
    return found


def label_map(values: Mapping[str, Any]) -> dict[int, Any] | None:
    """What `id2label` of a parsed `config.json` calls each output; None where it is null or absent.

    Raises:
        LpafError: it does not name outputs by their numbers.
    """
    labels = values.get("id2label")
    if labels is None:
        return None
    try:
        return {int(number): name for number, name in labels.items()}
    except (AttributeError, ValueError):
        raise LpafError(
            'config.json: id2label must name each class by its number, as {"0": "negative", "1": '
            f'"positive"}} does; it is {json.dumps(labels)[:80]}'
        ) from None


def refuse_quantized(values: Mapping[str, Any], where: object) -> None:
    """Refuse weights that are codes and scales, each method's its own, and no numbers.

    Args:
        values: a parsed `config.json`. where: what a message calls its folder.

    Raises:
        LpafError: they are.
    """
    for field in ("quantization_config", "compression_config"):
        found = values.get(field)
        if found is not None:
            method = found.get("quant_method") if isinstance(found, Mapping) else None
            raise quantized(where, str(method or f"config.json has a {field}"))


def quantized(where: object, why: str) -> LpafError:
    """The error of a folder that is quantized, by `why` it is known to be."""
    return LpafError(
        f"{where} is quantized ({why}), which is not supported: give the original checkpoint, or "
        "save the result of transformers' dequantize()"
    )
