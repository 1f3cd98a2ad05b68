"""The tensors of a checkpoint folder, read one at a time.

A folder holds `model.safetensors`, shards of it with an index, or the pickled `pytorch_model.bin`
of older checkpoints, whole or in shards, which PyTorch reads where it is installed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lpaf_jax.errors import LpafError
from lpaf_jax.files import read_json

WEIGHTS = "model.safetensors"
_PICKLED = "pytorch_model.bin"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder, in a fixed order.

    Raises:
        LpafError: there are none, or an index is damaged.
    """
    for name in (WEIGHTS, _PICKLED):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, Mapping):
                raise LpafError(f"{index} is damaged: it has no weight_map; copy the folder again")
            return [folder / shard for shard in sorted(set(shards.values()))]
    raise LpafError(f"{folder} holds no {WEIGHTS}")


def read_file(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of a file, each read when it is its turn.

    Raises:
        LpafError: the file is damaged or cannot be read.
    """
    if file.suffix == ".bin":
        yield from _read_pickled(file)
        return
    with opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            yield name, tensors.get_tensor(name)


@contextmanager
def opened(file: Path) -> Iterator[safe_open]:
    """A safetensors file, its header read; an error inside is one of the file.

    Raises:
        LpafError: the file is damaged or cannot be read.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise LpafError(f"{file} is damaged or cannot be read: {error}") from error


def _read_pickled(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    if find_spec("torch") is None:
        raise LpafError(
            f"{file} is read by PyTorch, which is not installed: install torch, or save the "
            "model as safetensors"
        )
    import torch

    try:
        # Only tensors are unpickled, no code; mapped, they are read when they are used.
        tensors: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch each raise kinds of their own
        reason = str(error).strip().split("\n")[0]
        raise LpafError(f"{file} is damaged or cannot be read: {reason}") from error
    for name, tensor in tensors.items():
        # numpy has no bfloat16 of its own; float32 holds all of its numbers.
        wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        yield name, wide.numpy()
