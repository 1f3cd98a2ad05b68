"""What a walk through a decoder has found, on disk, so that it goes on where it was stopped."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from lpaf_jax.checkpoints.tensors import opened, read_file
from lpaf_jax.core.files import atomic_write, read_json, write_json
from lpaf_jax.factors import KINDS, Record


class Cut(NamedTuple):
    """What became of a matrix.

    Attributes:
        path: of its layer.
        shape: (m, n).
        record: what config.json says of its layer; None where it stayed dense, as factors would
            have had more numbers.
        error: `E‖x W − x A B‖² / E‖x W‖²` over the calibration text, x as the blocks before, which
            are compressed, and the rest of its own, which is dense, leave it. Of layers that lost
            channels it is that of the layer that takes them. Where a layer is held against the
            dense model (`aa-svd`), the layers of its block before it are compressed as well, and
            what it mends counts as lost.
    """

    path: str
    shape: tuple[int, int]
    record: Record | None
    error: float

    @property
    def numbers(self) -> int:
        """How many are stored."""
        if self.record is None:
            return math.prod(self.shape)
        return KINDS[self.record["kind"]].size(self.record, self.shape)


class Store:
    """The finished blocks of a walk, and what was known before the first of them was cut.

    Args:
        folder: of this one walk; it is made when the first thing is kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def ranks(self) -> dict[str, int | None] | None:
        """The rank of every matrix, if they were chosen already."""
        found: dict[str, int | None] | None = self._json("ranks")
        return found

    def keep_ranks(self, ranks: Mapping[str, int | None]) -> None:
        write_json(self.folder / "ranks.json", ranks)

    def seen(self) -> dict[str, float] | None:
        """How far the answers of the model were with one matrix cut, if that was measured."""
        found: dict[str, float] | None = self._json("seen")
        return found

    def keep_seen(self, seen: Mapping[str, float]) -> None:
        write_json(self.folder / "seen.json", seen)

    def has_sides(self, index: int) -> bool:
        """Whether arrays of a block are kept."""
        return self._file("sides", index).is_file()

    def sides(self, index: int, *kinds: str) -> dict[str, np.ndarray]:
        """Arrays that are known of a block before it is cut, named `PATH:KIND`, of these kinds."""
        file = self._file("sides", index)
        with opened(file) as arrays:
            names = [name for name in arrays.keys() if name.rpartition(":")[2] in kinds]  # noqa: SIM118
            return {name: arrays.get_tensor(name) for name in names}

    def keep_sides(self, index: int, arrays: dict[str, np.ndarray]) -> None:
        with atomic_write(self._file("sides", index)) as temporary:
            # safetensors writes the memory of an array as it lies, whatever its strides.
            save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, temporary)

    def table(self) -> tuple[Record, dict[str, np.ndarray]] | None:
        """Record and factors of the token embeddings, if they were found already."""
        record = self._json("table")
        if record is None:
            return None
        return record, dict(read_file(self.folder / "table.safetensors"))

    def keep_table(self, record: Record, factors: Mapping[str, np.ndarray]) -> None:
        with atomic_write(self.folder / "table.safetensors") as temporary:
            save_file({name: np.ascontiguousarray(x) for name, x in factors.items()}, temporary)
        write_json(self.folder / "table.json", record)  # last: where it is, the factors are whole

    def block(self, index: int) -> tuple[dict[str, np.ndarray], list[Cut]] | None:
        """Tensors by name and cuts of a block, if it is finished."""
        file, note = self._file("block", index), self._note(index)
        if not note.is_file():
            return None
        cuts = [Cut(path, (m, n), *rest) for path, (m, n), *rest in read_json(note)]
        return dict(read_file(file)), cuts

    def keep_block(self, index: int, tensors: dict[str, np.ndarray], cuts: list[Cut]) -> None:
        file = self._file("block", index)
        with atomic_write(file) as temporary:
            save_file(tensors, temporary)
        write_json(self._note(index), cuts)  # last: where it is, the tensors are whole

    def _note(self, index: int) -> Path:
        # Notes of before they held records were called otherwise, and their blocks are cut again.
        return self.folder / f"cuts-{index:05d}.json"

    def _json(self, name: str) -> Any:
        path = self.folder / f"{name}.json"
        return read_json(path) if path.is_file() else None

    def _file(self, kind: str, index: int) -> Path:
        return self.folder / f"{kind}-{index:05d}.safetensors"
