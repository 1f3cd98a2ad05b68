"""A decoder on disk, taken block by block: for models that are larger than memory."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from lpaf_jax.checkpoints.contents import read_source
from lpaf_jax.checkpoints.gguf_tensors import GGUF, gguf_places
from lpaf_jax.checkpoints.names import file_name, is_of_head, is_transposed
from lpaf_jax.checkpoints.tensors import check_finite, read_tensor, read_wide, tensor_dtype
from lpaf_jax.checkpoints.weight_files import refuse_pickled
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json
from lpaf_jax.factors import SLICED, Record, read_records
from lpaf_jax.models.compressible import is_compressible
from lpaf_jax.models.families import FAMILIES, family_name
from lpaf_jax.models.functional import Params, parameters, set_parameters
from lpaf_jax.models.initial import Initializer


class Between(NamedTuple):
    """The layers of a block between which channels lie, by path.

    Attributes:
        into: those that give them. out: the one that takes them.
        head: of values: how many channels a head has. shared: how many queries share a head.
    """

    into: tuple[str, ...]
    out: str
    head: int | None = None
    shared: int = 1


class DecoderOnDisk:
    """A checkpoint folder of a decoder whose tensors are read when they are asked for.

    Attributes:
        folder: where it lies.
        values: its parsed `config.json`, as `Source` has it.
        shapes: of all parameters, by path.
        blocks: how many there are.
        positions: the longest input, in tokens.
        architecture: what PyTorch calls the model.
        unread_bytes: of tensors in the folder that are no part of the model.

    Args:
        folder: dense, of a family of decoders.

    Raises:
        LpafError: it is of no such family, is factorized already, is pickled, has no language
            model's head, or its weights are not whole (see `Source.match`).
    """

    def __init__(self, folder: Path):
        values = read_json(folder / "config.json")
        self.folder, self.name = folder, family_name(values, str(folder))
        if FAMILIES[self.name].block is None:
            decoders = [name for name, family in FAMILIES.items() if family.block is not None]
            raise LpafError(
                f"{folder} is of the family {self.name}; only decoders can be compressed block by "
                f"block: {', '.join(decoders)}"
            )
        if read_records(values, folder):
            raise LpafError(f"{folder} is already factorized; start from a dense model")
        refuse_pickled(folder)
        source = read_source(folder, "lm")
        self.values, self._family = source.values, source.family
        self.architecture = self._family.architectures["lm"]
        self._config = self._family.config(self.values)
        model = self._empty()
        self.positions: int = model.positions
        self.shapes = {path: x.shape for path, x in parameters(model).items()}
        self.blocks = len(model.body.blocks)
        contents = source.match(self.shapes)
        self._headers = contents.tensors
        self.unread_bytes = sum(header.bytes for header in contents.left + source.copies)
        absent = [path for path in self.shapes if path not in self._headers]
        if absent:
            first = file_name(absent[0], self.shapes)
            raise LpafError(
                contents.unfit.get(absent[0])
                or f"{folder}: {len(absent)} tensors are missing, such as {first}"
            )

    @property
    def codes(self) -> list[str]:
        """What the matrices are quantized as, where they are; empty for floats."""
        files = {header.file for header in self._headers.values()}
        kinds = {
            place.kind
            for file in files
            if file.name == GGUF
            for place in gguf_places(file).values()
            if place.is_coded
        }
        return sorted(kinds)

    def bytes_as_written(self) -> int:
        """What its weights take in the dtypes that `stored` gives."""
        return sum(
            math.prod(header.shape) * self.stored_dtype(path).itemsize
            for path, header in self._headers.items()
        )

    def check_finite(self) -> None:
        """Look at every number there is, some megabytes at a time.

        Raises:
            LpafError: one is not finite.
        """
        for header in self._headers.values():
            check_finite(header)

    def as_stored(self, layer: str) -> bool:
        """Whether the matrix of a layer lies in the file as (in, out)."""
        return self._family.as_stored(layer)

    def even_width(self, records: Mapping[str, Record]) -> dict[str, int] | None:
        """What config.json has of a model that is this one but for its feed-forward channels.

        None where records, by path, are of anything else, or blocks have not as many each.
        """
        places = [self.feed_forward(index) for index in range(self.blocks)]
        if set(records) != {path for each in places for path in (*each.into, each.out)}:
            return None
        if any(record["kind"] != SLICED.name or "heads" in record for record in records.values()):
            return None
        widths = {records[each.out]["inputs"] for each in places}
        return {self._family.layout.width: widths.pop()} if len(widths) == 1 else None

    @property
    def table(self) -> str:
        """The path of the layer of token embeddings."""
        return self._family.table

    @property
    def tied(self) -> bool:
        """Whether the head has the weight of the token embeddings."""
        return not any(is_of_head(path, self._family) for path in self.shapes)

    def embedder(self) -> Any:
        """A model of which `body.embed` and `body.context` can be used, and nothing else."""
        return self._with(lambda path: not is_of_head(path, self._family))

    def ending(self) -> Any:
        """A model of which `body.finish` and `head` can be used, and nothing else."""
        return self._with(lambda path: self.tied or path != f"{self.table}.weight")

    def block(self, index: int) -> Any:
        """One block, with its weights as float32."""
        init_key = jax.random.key(0)
        make = self._family.block
        assert make is not None  # of a decoder
        block = nnx.eval_shape(lambda: make(self._config, Initializer(init_key), index))
        prefix = self.prefix(index)
        found = {path: self._array(f"{prefix}.{path}") for path in parameters(block)}
        set_parameters(block, found)
        return block

    def prefix(self, index: int) -> str:
        """The path of a block."""
        return f"{self._family.blocks}.{index}"

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(m, n) of every compressible matrix, by the path of its layer."""
        return {
            path.removesuffix(".kernel"): (shape[0], shape[1])
            for path, shape in self.shapes.items()
            if is_compressible(path)
        }

    def feed_forward(self, index: int) -> Between:
        """The feed-forward layers of a block."""
        layout, prefix = self._family.layout, self.prefix(index)
        return Between(tuple(f"{prefix}.{path}" for path in layout.into), f"{prefix}.{layout.out}")

    def values_between(self, index: int) -> Between | None:
        """The layers that give and take the values of attention; None where they share a matrix."""
        layout, prefix = self._family.layout, self.prefix(index)
        if not layout.apart:
            return None
        heads, keys = self._config.num_attention_heads, self._config.num_key_value_heads
        into, out = (f"{prefix}.{path}" for path in (layout.values, layout.output))
        return Between((into,), out, self._config.head_dim, heads // keys)

    def outside(self) -> list[str]:
        """Paths of the parameters that lie in no block."""
        return [path for path in self.shapes if not self._in_block(path)]

    def stored(self, path: str) -> np.ndarray:
        """The parameter at `path` as it lies in the file: its dtype, and (out, in) or (in, out)."""
        header = self._headers[path]
        return read_tensor(header.file, header.name)

    def stored_dtype(self, path: str) -> np.dtype[Any]:
        """The dtype of the parameter at `path` in the file."""
        header = self._headers[path]
        return tensor_dtype(header.file, header.name)

    def _array(self, path: str) -> jax.Array:
        header = self._headers[path]
        turned = is_transposed(path, self._family, self.shapes)
        value = read_wide(header.file, header.name, header.shape, turned)
        # On a CPU without a copy, which of the token embeddings would be the most that is held.
        return jax.device_put(jax.dlpack.from_dlpack(value), jax.devices()[0])

    def _empty(self) -> Any:
        key = jax.random.key(0)
        return nnx.eval_shape(lambda: self._family.heads["lm"](self._config, key))

    def _with(self, chosen: Callable[[str], bool]) -> Any:
        model = self._empty()
        found: Params = {path: self._array(path) for path in self.outside() if chosen(path)}
        set_parameters(model, found)
        return model

    def _in_block(self, path: str) -> bool:
        return path.startswith(f"{self._family.blocks}.")
