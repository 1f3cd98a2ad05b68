"""Adapters of PEFT, merged into their base model, and those of a run as PEFT reads them."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lpaf_jax.checkpoints import load_extra, load_model, resolve_model, save_model
from lpaf_jax.checkpoints.adapter import Adapter, load_adapter, read_adapter, save_adapter
from lpaf_jax.checkpoints.contents import read_source
from lpaf_jax.checkpoints.outputs import class_names
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.folders import model_folder, run_of, run_record, stage_folder
from lpaf_jax.export.dense import dtype_of
from lpaf_jax.export.rewrite import DTYPES, card_of, noted
from lpaf_jax.models.lora import merge_adapters


def export_merged(adapter: Path, out: Path, *, base: str | None = None) -> None:
    """Write the base model of an adapter with `W + s A B` for each W that it is added to.

    The model is read whole, in float32; it is stored in the dtype of the base model.

    Args:
        adapter: a folder of PEFT.
        out: what stands there is replaced.
        base: the base model; None is the one that the adapter names.

    Raises:
        LpafError: there is no base model, it does not fit, or a file is damaged.
    """
    given = read_adapter(adapter)
    if base is None and not given.base:
        raise LpafError(f"{adapter} does not name its base model: give --base")
    place = resolve_model(base or given.base)
    source = read_source(place, given.head)
    outputs = _outputs(given)
    model = load_model(place, head=given.head, num_labels=outputs)
    load_adapter(model, given, source.family)
    merge_adapters(model)
    names = None
    if source.head == "classification":
        values = source.values if outputs is None else {**source.values, "num_labels": outputs}
        names = class_names(values, place)
    narrow = DTYPES.get(dtype_of(source), np.float32)
    note = (
        f"**Merged**: the updates of an adapter (LoRA, {len(given.updates)} layers) were added to "
        "the weights of the model that the text below speaks of."
    )
    save_model(
        model,
        out,
        source=place,
        label_names=names,
        card=noted(card_of(place), note),
        stored=lambda path: jnp.dtype(narrow),
    )


def _outputs(adapter: Adapter) -> int | None:
    """How many outputs the head has that lies in an adapter; None where it has none."""
    heads = ("classifier.weight", "score.weight", "classifier.out_proj.weight")
    found = (len(x) for name, x in adapter.whole.items() if name.endswith(heads))
    return next(found, None) if adapter.head in (None, "classification") else None


def export_adapter(run: Path, out: Path) -> None:
    """Write what a run with `--lora` trained as a folder of PEFT, for the model before it.

    Raises:
        LpafError: the run trained no adapter.
    """
    final = model_folder(run)
    owner = run_of(final)
    tensors = load_extra(final)
    tuned = None if owner is None else run_record(owner[0], "settings.json")
    rank = None if not tuned else tuned.get("lora")
    if owner is None or not tuned or not rank:
        raise LpafError(f"{run} trained no adapter: only a run with --lora has one")
    before = stage_folder(owner[0], "factorized").resolve()
    if not (before / "config.json").is_file():
        raise LpafError(
            f"{run} no longer holds the model that its adapter is for (--keep final); "
            "the final model has it merged"
        )
    source = read_source(final)
    save_adapter(
        out,
        tensors,
        scale=tuned["lora_alpha"] / rank,
        base=str(before),
        family=source.family,
        head=source.head,
    )
