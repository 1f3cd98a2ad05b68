"""The tensors of a checkpoint folder, read one at a time.

A folder holds `model.safetensors`, shards of it with an index, or the pickled `pytorch_model.bin`
of older checkpoints, whole or in shards, which PyTorch reads where it is installed.
"""

import math
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lpaf_jax.errors import LpafError
from lpaf_jax.files import read_json, write_json

WEIGHTS = "model.safetensors"
_PICKLED = "pytorch_model.bin"
# Numbers of a matrix that are read at a time.
_PIECE = 2**22
# As safetensors calls what weights are stored in.
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_OF_TORCH = {f"torch.{np.dtype(dtype).name}": kind for kind, dtype in _DTYPES.items()}


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
        for name, tensor in _pickled(file).items():
            yield name, _from_torch(tensor)
        return
    with opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            yield name, tensors.get_tensor(name)


def locate(folder: Path) -> dict[str, Path]:
    """The file that each tensor of a model folder lies in, by the tensor's name.

    Raises:
        LpafError: a file is missing, damaged or pickled: those can only be read whole.
    """
    found: dict[str, Path] = {}
    for file in weight_files(folder):
        if file.suffix == ".bin":
            raise LpafError(f"{file} can only be read whole: save the model as safetensors")
        with opened(file) as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def read_tensor(file: Path, name: str) -> np.ndarray:
    """One tensor of a safetensors file, in the dtype that it has there.

    Raises:
        LpafError: the file is damaged or cannot be read.
    """
    # Opened each time: a file that stays mapped keeps every page that was read in memory.
    with opened(file) as tensors:
        return tensors.get_tensor(name)


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: as it is stored.
        read: `read(turned) -> array` in float32, transposed if `turned`; beside the array some
            megabytes are held, of a pickled file the tensor itself. It raises LpafError if the
            tensor is not finite, or stored as no float that is known here.
    """

    shape: tuple[int, ...]
    read: Callable[[bool], np.ndarray]


def stored_in(file: Path) -> dict[str, Stored]:
    """The tensors of a file by name, none of them read yet.

    Raises:
        LpafError: here or in reading, the file is damaged or cannot be read.
    """
    if file.suffix == ".bin":
        return {
            name: Stored(tuple(tensor.shape), partial(_unpickled, file, name, tensor))
            for name, tensor in _pickled(file).items()
        }
    with opened(file) as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return {
        name: Stored(shape, partial(read_wide, file, name, shape)) for name, shape in shapes.items()
    }


def read_wide(file: Path, name: str, shape: tuple[int, ...], turned: bool) -> np.ndarray:
    """One tensor as `Stored.read` gives it."""
    tensor_dtype(file, name)
    if len(shape) != 2:
        return _widened(file, name, read_tensor(file, name), turned)
    found = _aligned(shape[::-1] if turned else shape)
    rows = max(1, _PIECE // max(1, shape[1]))
    for start in range(0, shape[0], rows):
        with opened(file) as tensors:  # once a piece: what was read does not stay mapped
            piece = tensors.get_slice(name)[start : min(start + rows, shape[0])]
        _check_finite(piece, file, name)
        (found.T if turned else found)[start : start + rows] = piece
    return found


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array that begins where JAX can take it over without a copy."""
    memory = np.empty(4 * math.prod(shape) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * math.prod(shape)].view(np.float32).reshape(shape)


def _unpickled(file: Path, name: str, tensor: Any, turned: bool) -> np.ndarray:
    _check_kind(_kind(tensor), file, name)
    return _widened(file, name, _from_torch(tensor), turned)


def _widened(file: Path, name: str, value: np.ndarray, turned: bool) -> np.ndarray:
    _check_finite(value, file, name)
    found = _aligned(value.shape[::-1] if turned else value.shape)
    found[...] = value.T if turned else value
    return found


def _check_finite(value: np.ndarray, file: Path, name: str) -> None:
    if not np.isfinite(value).all():
        raise LpafError(f"{file}: tensor {name} holds NaN or infinity")


def tensor_shape(file: Path, name: str) -> tuple[int, ...]:
    """The shape of a tensor, without reading it."""
    with opened(file) as tensors:
        return tuple(tensors.get_slice(name).get_shape())


def tensor_dtype(file: Path, name: str) -> np.dtype[Any]:
    """The dtype of a tensor, without reading it.

    Raises:
        LpafError: it is no float that is known here.
    """
    with opened(file) as tensors:
        kind = tensors.get_slice(name).get_dtype()
    _check_kind(kind, file, name)
    return np.dtype(_DTYPES[kind])


def _check_kind(kind: str, file: Path, name: str) -> None:
    # Integers and floats of 8 bits are codes: their scales lie in tensors of other names.
    if kind not in _DTYPES:
        raise LpafError(
            f"{file}: tensor {name} is stored as {kind}, which is not read here: give a checkpoint "
            "in float32, float16 or bfloat16"
        )


class Header(NamedTuple):
    """What is known of a stored tensor before it is read; `dtype` as safetensors calls it."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


def read_headers(folder: Path) -> dict[str, Header]:
    """Shapes, dtypes and sizes of all tensors of a model folder, none of which is read.

    Raises:
        LpafError: a file is missing or damaged, or is pickled and PyTorch is not installed.
    """
    found: dict[str, Header] = {}
    for file in weight_files(folder):
        if file.suffix == ".bin":
            # Mapped, which files from before PyTorch 1.6 cannot be: their tensors are not read.
            for name, tensor in _pickled(file, mapped=zipfile.is_zipfile(file)).items():
                found[name] = Header(tuple(tensor.shape), _kind(tensor), tensor.nbytes)
            continue
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                part = tensors.get_slice(name)
                shape, kind = tuple(part.get_shape()), part.get_dtype()
                bits = re.search(r"\d+", kind)
                size = math.prod(shape) * (int(bits[0]) if bits else 8) // 8
                found[name] = Header(shape, kind, size)
    return found


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


def _pickled(file: Path, *, mapped: bool = False) -> dict[str, Any]:
    """The tensors of PyTorch in a pickled file, by name.

    Pages of a mapped file count as memory until all its tensors are gone, and those of a file that
    is read go one by one.
    """
    if find_spec("torch") is None:
        raise LpafError(
            f"{file} is read by PyTorch, which is not installed: install torch, or save the "
            "model as safetensors"
        )
    import torch

    try:
        # Only tensors are unpickled, no code.
        tensors: dict[str, Any] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=mapped
        )
    except Exception as error:  # pickle, zip and torch each raise kinds of their own
        reason = str(error).strip().split("\n")[0]
        raise LpafError(f"{file} is damaged or cannot be read: {reason}") from error
    return tensors


def _kind(tensor: Any) -> str:
    """The dtype of a tensor of PyTorch as safetensors calls it, or else as PyTorch does."""
    return _OF_TORCH.get(str(tensor.dtype), str(tensor.dtype).removeprefix("torch."))


def _from_torch(tensor: Any) -> np.ndarray:
    if _kind(tensor) != "BF16":
        found: np.ndarray = tensor.numpy()
        return found
    import torch

    # PyTorch gives numpy no bfloat16.
    bits: np.ndarray = tensor.view(torch.int16).numpy()
    return bits.view(jnp.bfloat16)


def share_weights(folder: Path) -> None:
    """Let whoever may read `config.json` read the weights: safetensors lets only their owner."""
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)


class ShardWriter:
    """Writes tensors as `model.safetensors`, or as shards with an index where they are many.

    No more than a shard is held in memory.

    Args:
        folder: that exists.
        limit: bytes at which a shard is full.
    """

    def __init__(self, folder: Path, limit: int = 2**28):
        self._folder, self._limit = folder, limit
        self._held: dict[str, np.ndarray] = {}
        self._written: list[list[str]] = []
        self._bytes = 0

    def add(self, name: str, value: np.ndarray) -> None:
        """Take a tensor, as it is to be stored."""
        # safetensors writes the memory of an array as it lies, whatever its strides.
        self._held[name] = np.ascontiguousarray(value)
        self._bytes += value.nbytes
        # At once, and not when the next one comes: that would be held beside these.
        if sum(x.nbytes for x in self._held.values()) >= self._limit:
            self._flush()

    def close(self) -> None:
        """Write what is held, and give all files the names that the index knows them by."""
        if self._held:
            self._flush()
        shards = len(self._written)
        index: dict[str, str] = {}
        stem, ending = WEIGHTS.split(".")
        for i, names in enumerate(self._written):
            whole = f"{stem}-{i + 1:05d}-of-{shards:05d}.{ending}" if shards > 1 else WEIGHTS
            self._part(i).rename(self._folder / whole)
            index |= dict.fromkeys(names, whole)
        if shards > 1:
            content = {"metadata": {"total_size": self._bytes}, "weight_map": index}
            write_json(self._folder / f"{WEIGHTS}.index.json", content)

    def _flush(self) -> None:
        save_file(self._held, self._part(len(self._written)), metadata={"format": "pt"})
        self._written.append(list(self._held))
        self._held = {}

    def _part(self, index: int) -> Path:
        return self._folder / f"part-{index}.safetensors"
