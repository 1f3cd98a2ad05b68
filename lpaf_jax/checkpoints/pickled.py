"""Weights that PyTorch pickled: `pytorch_model.bin`, and what people put into such a file."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lpaf_jax.core.errors import LpafError

# As safetensors calls what PyTorch calls by the name of numpy.
_KINDS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# How deep training programs bury the weights: {"model": {"state_dict": weights}} is two.
_DEPTH = 2
# Of optimisers and schedules: their moments have names of parameters in some programs.
_NOT_WEIGHTS = ("optim", "sched")


def pickled(file: Path, *, mapped: bool = False) -> dict[str, Any]:
    """The tensors of PyTorch in a pickled file, by name.

    The weights may lie beside other things, or a step or two within them, as training programs
    leave them: the one mapping in the file whose keys are dotted names of tensors is taken.

    Args:
        file: as `torch.save` wrote it.
        mapped: leave the numbers on disk until they are asked for, where the file can be mapped:
            those of before PyTorch 1.6 cannot. Pages of a mapped file count as memory until all
            its tensors are gone, and those of a file that is read go one by one.

    Raises:
        LpafError: PyTorch is not installed, the file is damaged, it holds objects other than
            tensors, or it is not clear which of them are the weights.
    """
    if find_spec("torch") is None:
        raise LpafError(
            f"{file} needs PyTorch, which is not installed: install torch, or save the model as "
            "safetensors"
        )
    import torch

    try:
        # Only tensors are unpickled, no code.
        content = torch.load(
            file,
            map_location="cpu",
            weights_only=True,
            mmap=mapped and zipfile.is_zipfile(file),
        )
    except Exception as error:  # pickle, zip and torch each raise kinds of their own
        if of_class := re.search(r"GLOBAL (\S+)", str(error)):
            raise LpafError(
                f"{file} contains an object of {of_class[1]}, but code is never unpickled here: "
                "save model.state_dict() instead"
            ) from error
        reason = str(error).strip().split("\n")[0]
        raise LpafError(f"{file} is damaged or cannot be read: {reason}") from error
    return _weights(content, file)


def kind_of(tensor: Any) -> str:
    """The dtype of a tensor of PyTorch as safetensors calls it, or else as PyTorch does."""
    if tensor.is_meta:
        return "meta, without values"
    if str(tensor.layout) != "torch.strided":
        return str(tensor.layout).removeprefix("torch.")
    name = str(tensor.dtype).removeprefix("torch.")
    return _KINDS.get(name, name)


def as_numpy(tensor: Any) -> np.ndarray:
    """A tensor of PyTorch as an array of numpy, of the same memory."""
    if kind_of(tensor) != "BF16":
        found: np.ndarray = tensor.numpy()
        return found
    import torch

    # PyTorch gives numpy no bfloat16.
    bits: np.ndarray = tensor.view(torch.int16).numpy()
    return bits.view(jnp.bfloat16)


def _weights(content: Any, file: Path) -> dict[str, Any]:
    import torch

    found = dict(_state_dicts(content))
    chosen = next(iter(found.values()), None)
    if chosen is None or len(found) > 1:
        places = [path or "at the top" for path in found]
        there = ", ".join(places or _keys(content)) or f"a {type(content).__name__}"
        problem = "weights in several places" if found else "no tensors named as parameters"
        raise LpafError(f"{file} holds {problem} ({there}): save only model.state_dict()")
    # A parameter is a tensor that asks for gradients, and numpy gets none of those.
    return {
        name: value.detach() if value.requires_grad else value
        for name, value in chosen.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def _state_dicts(content: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Mappings of dotted names to tensors, by where they lie; "" is the whole."""
    import torch

    if not isinstance(content, Mapping):
        return
    tensors = (key for key, value in content.items() if isinstance(value, torch.Tensor))
    if any(isinstance(key, str) and "." in key for key in tensors):
        yield path, content
    if depth < _DEPTH:
        for key, value in content.items():
            if not any(word in str(key).lower() for word in _NOT_WEIGHTS):
                yield from _state_dicts(value, f"{path}.{key}".lstrip("."), depth + 1)


def _keys(content: Any) -> list[str]:
    names = [str(key) for key in content] if isinstance(content, Mapping) else []
    return names if len(names) <= 6 else [*names[:5], f"and {len(names) - 5} more"]
