"""Paths of parameters in a model, and the names of the same tensors in a file."""

from collections.abc import Container

from lpaf_jax.factors import StoredAs, kind_at
from lpaf_jax.models.families import Family

# Leaf in the model -> leaf in the file.
_LEAVES = {"kernel": "weight"}
# What wrappers of PyTorch put into the names of the tensors of what they wrap: DataParallel and
# DDP, torch.compile, FSDP, activation checkpointing, DeepSpeed, and PEFT around single layers.
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "base_layer",
}
# What may stand before all names: attributes of training programs, PEFT's base_model.model.
_OUTER = {"model", "base_model"}


def file_name(path: str, paths: Container[str]) -> str:
    """Name in the file of the parameter at `path`, one of `paths`.

    `x.query.kernel` is `x.query.weight`; of factors, and of the bias beside them, their kind says.
    """
    parent, _, leaf = path.rpartition(".")
    stored = _of_kind(path, paths)
    return f"{parent}.{_LEAVES.get(leaf, leaf) if stored is None else stored.name}"


def file_key(name: str, family: Family) -> str:
    """What all names of a tensor have in common.

    Checkpoints without a head carry no prefix, wrapped models one of their wrapper's more, and old
    ones call norms gamma and beta.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and (parts[0] in _OUTER or parts[0] == family.prefix):
        parts.pop(0)
    return (
        ".".join(parts)
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias")
    )


def is_transposed(path: str, family: Family, paths: Container[str]) -> bool:
    """Whether the parameter at `path`, one of `paths`, (in, out), lies in the file as (out, in)."""
    layer, _, leaf = path.rpartition(".")
    stored = _of_kind(path, paths)
    if stored is not None:
        return stored.turned
    return leaf == "kernel" and not family.as_stored(layer)


def is_of_head(path: str, family: Family) -> bool:
    """Whether the parameter at `path` belongs to the head.

    A pooler does, wherever it lies: only a classifier reads it, and a folder of a masked language
    model or of spans has none.
    """
    return not path.startswith(f"{family.prefix}.") or path.startswith(f"{family.prefix}.pooler.")


def _of_kind(path: str, paths: Container[str]) -> StoredAs | None:
    layer, _, leaf = path.rpartition(".")
    kind = kind_at(layer, paths)
    return None if kind is None else kind.stored(leaf)
