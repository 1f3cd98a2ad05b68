"""Adapters of PEFT, merged into their base model, and those of a run as PEFT reads them."""

from pathlib import Path

import jax.numpy as jnp

from lpaf_jax.checkpoints import load_extra, load_model, resolve_model, save_model
from lpaf_jax.checkpoints.adapter import (
    HEADS,
    SCALE,
    Adapter,
    load_adapter,
    read_adapter,
    save_adapter,
)
from lpaf_jax.checkpoints.checkpoint import shapes_of
from lpaf_jax.checkpoints.contents import Source, read_source
from lpaf_jax.checkpoints.names import file_key, file_name
from lpaf_jax.checkpoints.outputs import class_names
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.folders import model_folder, run_of, run_record, stage_folder
from lpaf_jax.export.dense import dtype_of
from lpaf_jax.export.rewrite import card_of, noted
from lpaf_jax.factors import read_records
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
    if outputs is not None:
        source = source._replace(values={**source.values, "num_labels": outputs})
    _refuse_missing(given, source)
    model = load_model(place, head=given.head, num_labels=outputs)
    load_adapter(model, given, source.family)
    merge_adapters(model)
    names = class_names(source.values, place) if source.head == "classification" else None
    note = (
        f"**Merged**: an adapter (LoRA, {len(given.updates)} layers) was added to the weights of "
        "the model described below."
    )
    narrow = jnp.dtype(dtype_of(source))
    save_model(
        model,
        out,
        source=place,
        label_names=names,
        card=noted(card_of(place), note),
        stored=lambda path: narrow,
    )


def _outputs(adapter: Adapter) -> int | None:
    """How many outputs the head has that lies in an adapter; None where it has none."""
    ends = (".weight", ".out_proj.weight")
    heads = {f"{head.rstrip('.')}{end}" for head in HEADS for end in ends}
    found = (len(x) for name, x in adapter.whole.items() if name in heads)
    return next(found, None) if adapter.head in (None, "classification") else None


def _refuse_missing(adapter: Adapter, source: Source) -> None:
    """A head that is in neither folder would be drawn at random."""
    shapes = shapes_of(source)
    there = source.match(shapes).tensors
    own = {file_key(name, source.family) for name in adapter.whole}
    names = {path: file_name(path, shapes) for path in shapes if path not in there}
    missing = [name for name in names.values() if file_key(name, source.family) not in own]
    if missing:
        raise LpafError(
            f"{missing[0]} is neither in {adapter.folder} nor in its base model, {source.folder}: "
            "use --base to name the model that it was trained on, with its head"
        )


def export_adapter(run: Path, out: Path) -> None:
    """Write what the last stage of a run with `--lora` trained as a folder of PEFT.

    Raises:
        LpafError: it trained no adapter, or one that PEFT has no place for.
    """
    final = model_folder(run)
    owner, tensors = run_of(final), load_extra(final)
    if owner is None or owner[1] != "final" or SCALE not in tensors:
        raise LpafError(f"{run} has no adapter: only a run whose last stage uses --lora has one")
    before = list(run_record(owner[0], "settings.json")["steps"])[-2]
    base = stage_folder(owner[0], before).resolve()
    if not (base / "config.json").is_file():
        raise LpafError(
            f"{run} no longer has the model that its adapter belongs to (--keep final); in the "
            "final model, the adapter is merged"
        )
    source = read_source(final)
    heads = [p for p, each in read_records(source.values, final).items() if "heads" in each]
    if heads:
        raise LpafError(
            f"{heads[0]} has lost channels of its heads, which PEFT adapters do not support; in "
            "the final model, the adapter is merged"
        )
    save_adapter(out, tensors, base=str(base), family=source.family, head=source.head)
