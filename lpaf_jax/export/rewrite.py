"""A checkpoint written anew tensor by tensor, whatever its size."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lpaf_jax.checkpoints.checkpoint import write_beside
from lpaf_jax.checkpoints.tensors import ShardWriter, share_weights
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import atomic_dir

DTYPES: Mapping[str, Any] = {"float32": np.float32, "bfloat16": jnp.bfloat16}


def rewrite(
    place: Path,
    out: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    config: dict[str, Any],
    *,
    dtype: str | None,
    card: str,
) -> None:
    """Write `tensors` and what goes with them into `out`, which appears whole or not at all.

    Memory holds what `tensors` does, one cast tensor and a shard of 256 MiB.

    Args:
        place: folder of the model that they come from; its tokenizer goes along.
        out: what stands there is replaced.
        tensors: names and values, taken one at a time.
        config: of the new folder.
        dtype: of `DTYPES`, for all floating-point tensors; None leaves each as it is.
        card: text of its README.md.

    Raises:
        LpafError: a tensor is not finite, or `out` cannot be written.
    """
    with atomic_dir(out) as target:
        writer = ShardWriter(target)
        for name, value in tensors:
            if jnp.issubdtype(value.dtype, jnp.floating) and not np.isfinite(value).all():
                raise LpafError(f"{place}: tensor {name} contains NaN or infinity")
            writer.add(name, _cast(value, dtype))
        writer.close()
        write_beside(target, place, config, card)
        share_weights(target)


def card_of(place: Path) -> str:
    """The card in a model folder, or a heading where there is none."""
    path = place / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else "# An exported model\n"


def noted(card: str, note: str) -> str:
    """A card with a note below its heading, before all else."""
    heading = re.search(r"^# .*\n", card, flags=re.M)
    at = 0 if heading is None else heading.end()
    return f"{card[:at]}\n> {note}\n\n{card[at:].lstrip()}"


def _cast(value: np.ndarray, dtype: str | None) -> np.ndarray:
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return value if dtype is None or not floating else value.astype(DTYPES[dtype])
