"""A decoder on disk, taken block by block: for models that are larger than memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lpaf_jax.errors import LpafError
from lpaf_jax.files import read_json
from lpaf_jax.models.compressible import is_compressible
from lpaf_jax.models.configs import refuse_quantized
from lpaf_jax.models.families import FAMILIES, Walk, family_name
from lpaf_jax.models.functional import Params, parameters, set_parameters
from lpaf_jax.models.initial import Initializer
from lpaf_jax.models.names import file_key, file_name, is_of_head, is_transposed
from lpaf_jax.models.tensors import locate, read_tensor, read_wide, tensor_dtype, tensor_shape


class DecoderOnDisk:
    """A checkpoint folder of a decoder whose tensors are read when they are asked for.

    Attributes:
        folder: where it lies.
        values: its parsed `config.json`.
        shapes: of all parameters, by path.
        blocks: how many there are.
        positions: the longest input, in tokens.
        architecture: what PyTorch calls the model.

    Args:
        folder: dense, of a family of decoders.

    Raises:
        LpafError: it is of no such family, is quantized or factorized already, has no language
            model's head, or a tensor is missing or of the wrong shape.
    """

    def __init__(self, folder: Path):
        self.folder, self.values = folder, read_json(folder / "config.json")
        self.name = family_name(self.values, str(folder))
        refuse_quantized(self.values, folder)
        self._family = FAMILIES[self.name]
        if self._family.walk is None:
            with_walk = [name for name, family in FAMILIES.items() if family.walk is not None]
            raise LpafError(
                f"{folder} is of the family {self.name}; without training only decoders are "
                f"compressed: {', '.join(with_walk)}"
            )
        if "lpaf_ranks" in self.values:
            raise LpafError(f"{folder} is factorized already; start from a dense model")
        self._walk: Walk = self._family.walk
        self.architecture = self._family.architectures["lm"]
        self._config = self._family.config(self.values)
        model = self._empty()
        self.positions: int = model.positions
        self.shapes = {path: x.shape for path, x in parameters(model).items()}
        self.blocks = len(model.body.blocks)
        self._files = {
            file_key(name, self._family): (file, name) for name, file in locate(folder).items()
        }
        absent = [path for path in self.shapes if self._key(path) not in self._files]
        if absent:
            first = file_name(absent[0], self.shapes)
            raise LpafError(f"{folder}: {len(absent)} tensors are missing, {first} among them")

    def embedder(self) -> Any:
        """A model of which `body.embed` and `body.context` can be used, and nothing else."""
        return self._with(lambda path: not is_of_head(path, self._family))

    def ending(self) -> Any:
        """A model of which `body.finish` and `head` can be used, and nothing else."""
        tied = not any(is_of_head(path, self._family) for path in self.shapes)
        return self._with(lambda path: tied or path != self._walk.table)

    def block(self, index: int) -> Any:
        """One block, with its weights as float32."""
        init_key = jax.random.key(0)
        block = nnx.eval_shape(lambda: self._walk.block(self._config, Initializer(init_key), index))
        prefix = self.prefix(index)
        found = {path: self._array(f"{prefix}.{path}") for path in parameters(block)}
        set_parameters(block, found)
        return block

    def prefix(self, index: int) -> str:
        """The path of a block."""
        return f"{self._walk.blocks}.{index}"

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(m, n) of every compressible matrix, by the path of its layer."""
        return {
            path.removesuffix(".kernel"): (shape[0], shape[1])
            for path, shape in self.shapes.items()
            if is_compressible(path)
        }

    def outside(self) -> list[str]:
        """Paths of the parameters that lie in no block."""
        return [path for path in self.shapes if not self._in_block(path)]

    def stored(self, path: str) -> np.ndarray:
        """The parameter at `path` as it lies in the file: its dtype, and (out, in) or (in, out)."""
        file, name = self._files[self._key(path)]
        self._checked(path)
        return read_tensor(file, name)

    def _checked(self, path: str) -> tuple[int, ...]:
        """The shape of the tensor in the file, if it is the one that config.json needs."""
        file, name = self._files[self._key(path)]
        shape = tensor_shape(file, name)
        turned = is_transposed(path, self._family)
        wanted = self.shapes[path][::-1] if turned else self.shapes[path]
        if shape != wanted:
            raise LpafError(
                f"{file}: tensor {name} has shape {shape}, where config.json needs {wanted}"
            )
        return shape

    def stored_dtype(self, path: str) -> np.dtype[Any]:
        """The dtype of the parameter at `path` in the file."""
        return tensor_dtype(*self._files[self._key(path)])

    def _array(self, path: str) -> jax.Array:
        file, name = self._files[self._key(path)]
        turned = is_transposed(path, self._family)
        value = read_wide(file, name, self._checked(path), turned)
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

    def _key(self, path: str) -> str:
        return file_key(file_name(path, self.shapes), self._family)

    def _in_block(self, path: str) -> bool:
        return path.startswith(f"{self._walk.blocks}.")
