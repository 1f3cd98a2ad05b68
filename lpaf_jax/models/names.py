"""Paths of parameters in a model, and the names of the same tensors in a file."""

from collections.abc import Container

from lpaf_jax.models.families import Family

# Leaf in the model -> leaf in the file.
_LEAVES = {"kernel": "weight", "a": "down.weight", "b": "up.weight"}
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

    `x.query.kernel` is `x.query.weight`, and the bias beside factors belongs to the second one.
    """
    parent, _, leaf = path.rpartition(".")
    if leaf == "bias" and f"{parent}.a" in paths:
        return f"{parent}.up.bias"
    return f"{parent}.{_LEAVES.get(leaf, leaf)}"


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


def is_transposed(path: str, family: Family) -> bool:
    """Whether the parameter at `path`, (in, out), lies in the file as (out, in)."""
    layer, _, leaf = path.rpartition(".")
    return leaf in ("a", "b") or (leaf == "kernel" and not family.as_stored(layer))


def is_of_head(path: str, family: Family) -> bool:
    """Whether the parameter at `path` belongs to the head.

    A pooler does, wherever it lies: only a classifier reads it, and a folder of a masked language
    model or of spans has none.
    """
    return not path.startswith(f"{family.prefix}.") or path.startswith(f"{family.prefix}.pooler.")
