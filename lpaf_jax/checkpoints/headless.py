"""Models for whose use the head does not matter, so that a pretrained encoder will do."""

from pathlib import Path
from typing import Any

from lpaf_jax.checkpoints.checkpoint import load_model
from lpaf_jax.core.files import read_json
from lpaf_jax.models.families import FAMILIES, Head, default_head, family_name, named_head


def head_in(folder: Path) -> Head:
    """The head that the config in `folder` names, or else the first of its family."""
    values = read_json(folder / "config.json")
    return default_head(values, FAMILIES[family_name(values, str(folder))])


def load_headless(folder: Path, head: Head | None = None) -> Any:
    """The model in `folder`; where it holds no head, one of two classes is drawn.

    Args:
        folder: see `load_model`.
        head: None takes what the folder has.

    Raises:
        LpafError: see `load_model`.
    """
    values = read_json(folder / "config.json")
    family = FAMILIES[family_name(values, str(folder))]
    chosen = head or default_head(values, family)
    drawn = named_head(values, family) is None and chosen == "classification"
    return load_model(folder, head=chosen, num_labels=2 if drawn else None)
