"""The tensors of a checkpoint's files, read one at a time.

Files are safetensors, pickled by PyTorch (`.bin`), or of llama.cpp (`.gguf`).
"""

import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lpaf_jax.checkpoints.gguf_tensors import gguf_places, gguf_rows
from lpaf_jax.checkpoints.pickled import as_numpy, kind_of, pickled
from lpaf_jax.checkpoints.weight_files import WEIGHTS, weight_files
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import write_json

_GGUF = ".gguf"
# Numbers of a matrix that are read at a time.
_PIECE = 2**22
# As safetensors calls what weights are stored in.
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def read_file(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of a file, each read when it is its turn.

    Raises:
        LpafError: the file is damaged or cannot be read.
    """
    if file.suffix == ".bin":
        for name, tensor in pickled(file).items():
            yield name, as_numpy(tensor)
        return
    with opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            yield name, tensors.get_tensor(name)


def read_tensor(file: Path, name: str) -> np.ndarray:
    """One tensor of a file that is not pickled, in the dtype that `tensor_dtype` says.

    Raises:
        LpafError: the file is damaged or cannot be read.
    """
    if file.suffix == _GGUF:
        return gguf_rows(file, name, slice(None)).astype(tensor_dtype(file, name))
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
            for name, tensor in pickled(file).items()
        }
    if file.suffix == _GGUF:
        shapes = {name: place.shape for name, place in gguf_places(file).items()}
    else:
        with opened(file) as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return {
        name: Stored(shape, partial(read_wide, file, name, shape)) for name, shape in shapes.items()
    }


def read_wide(file: Path, name: str, shape: tuple[int, ...], turned: bool) -> np.ndarray:
    """One tensor as `Stored.read` gives it."""
    tensor_dtype(file, name)
    found = _aligned(shape[::-1] if turned else shape)
    there, start = found.T if turned else found, 0
    for piece in _pieces(file, name, shape):
        _check_finite(piece, file, name)
        if shape:
            there[start : start + len(piece)] = piece
            start += len(piece)
        else:
            there[...] = piece
    return found


def _pieces(file: Path, name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A tensor of a file that is not pickled, some rows at a time."""
    for rows in _rows(shape):
        if file.suffix == _GGUF:
            yield gguf_rows(file, name, rows)
            continue
        with opened(file) as tensors:  # once a piece: what was read does not stay mapped
            piece = tensors.get_slice(name)[rows] if shape else tensors.get_tensor(name)
        yield piece


def _rows(shape: tuple[int, ...]) -> list[slice]:
    """Pieces of a tensor: of a scalar the one there is."""
    if not shape:
        return [slice(None)]
    step = max(1, _PIECE // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array that begins where JAX can take it over without a copy."""
    memory = np.empty(4 * math.prod(shape) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * math.prod(shape)].view(np.float32).reshape(shape)


def _unpickled(file: Path, name: str, tensor: Any, turned: bool) -> np.ndarray:
    check_kind(kind_of(tensor), file, name)
    return _widened(file, name, as_numpy(tensor), turned)


def _widened(file: Path, name: str, value: np.ndarray, turned: bool) -> np.ndarray:
    _check_finite(value, file, name)
    found = _aligned(value.shape[::-1] if turned else value.shape)
    found[...] = value.T if turned else value
    return found


def _check_finite(value: np.ndarray, file: Path, name: str) -> None:
    if not np.isfinite(value).all():
        raise LpafError(f"{file}: tensor {name} contains NaN or infinity")


def tensor_dtype(file: Path, name: str) -> np.dtype[Any]:
    """The dtype of a tensor, without reading it; of codes, the one that they are written in.

    Raises:
        LpafError: it is no float that is known here.
    """
    if file.suffix == _GGUF:
        kind = gguf_places(file)[name].dtype
    else:
        with opened(file) as tensors:
            kind = tensors.get_slice(name).get_dtype()
    check_kind(kind, file, name)
    return np.dtype(_DTYPES[kind])


def check_kind(kind: str, file: Path, name: str) -> None:
    """Raise LpafError unless a tensor stored as `kind` holds floats that are known here."""
    # Integers and floats of 8 bits are codes: their scales lie in tensors of other names.
    if kind not in _DTYPES:
        raise LpafError(
            f"{file}: tensor {name} is stored as {kind}, which is not supported: give a "
            "checkpoint in float32, float16 or bfloat16"
        )


class Header(NamedTuple):
    """What is known of a stored tensor before it is read; `dtype` as safetensors calls it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


def read_headers(folder: Path) -> list[Header]:
    """What all tensors of a model folder are, none of which is read.

    Raises:
        LpafError: a file is missing or damaged, or is pickled and PyTorch is not installed.
    """
    found: list[Header] = []
    for file in weight_files(folder):
        if file.suffix == ".bin":
            for name, tensor in pickled(file, mapped=True).items():
                kind = kind_of(tensor)
                size = tensor.numel() * tensor.element_size()
                found.append(Header(file, name, tuple(tensor.shape), kind, size))
            continue
        if file.suffix == _GGUF:
            for name, place in gguf_places(file).items():
                found.append(Header(file, name, place.shape, place.dtype, place.size))
            continue
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                part = tensors.get_slice(name)
                shape, kind = tuple(part.get_shape()), part.get_dtype()
                bits = re.search(r"\d+", kind)
                size = math.prod(shape) * (int(bits[0]) if bits else 8) // 8
                found.append(Header(file, name, shape, kind, size))
    return found


def check_finite(header: Header) -> None:
    """Look at every number of a tensor of a file that is not pickled, some megabytes at a time.

    Raises:
        LpafError: one is not finite, or the file cannot be read.
    """
    for piece in _pieces(header.file, header.name, header.shape):
        _check_finite(piece, header.file, header.name)


def hold_the_same(one: Header, other: Header) -> bool:
    """Whether two tensors have the same shape and numbers, whatever they are stored as.

    Some megabytes of each are in memory at a time; of a pickled file, what PyTorch maps.

    Raises:
        LpafError: a file cannot be read.
    """
    for header in (one, other):  # tables of integers may be compared, codes may not
        if not header.dtype.upper().startswith(("I", "U", "BOOL")):
            check_kind(header.dtype, header.file, header.name)
    if one.shape != other.shape:
        return False
    pairs = zip_longest(_numbers(one), _numbers(other), fillvalue=np.empty(0))
    return all(np.array_equal(x.astype(np.float64), y.astype(np.float64)) for x, y in pairs)


def _numbers(header: Header) -> Iterator[np.ndarray]:
    if header.file.suffix == ".bin":
        tensor = as_numpy(pickled(header.file, mapped=True)[header.name])
        yield from (tensor[rows] if header.shape else tensor for rows in _rows(header.shape))
        return
    yield from _pieces(header.file, header.name, header.shape)


@contextmanager
def opened(file: Path) -> Iterator[safe_open]:
    """A safetensors file, its header read; an error inside is one of the file.

    Raises:
        LpafError: the file is damaged or cannot be read.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except FileNotFoundError:
        raise LpafError(f"{file} does not exist; copy it there") from None
    except (SafetensorError, OSError) as error:
        raise LpafError(f"{file} is damaged or cannot be read: {error}") from error


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
