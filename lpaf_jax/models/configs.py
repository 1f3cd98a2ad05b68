"""What is the same in a `config.json` of every family."""

from collections.abc import Mapping
from typing import Any


def plain_values(
    values: dict[str, Any], aliases: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A parsed `config.json` in the names of its family, with the number of labels in it.

    Args:
        values: as parsed.
        aliases: name that transformers takes as well -> the family's own. As there, what stands
            under the first goes before what stands under the second.

    `num_labels` is, where it is not said, the length of `id2label`; a null one says nothing.
    """
    named = {own: values[name] for name, own in (aliases or {}).items() if name in values}
    found = values | named
    if found.get("num_labels") is None:
        found.pop("num_labels", None)
        if found.get("id2label") is not None:
            found["num_labels"] = len(found["id2label"])
    return found
