"""The files of a model folder that hold its weights."""

import re
from collections.abc import Mapping
from pathlib import Path

from lpaf_jax.checkpoints.gguf_tensors import GGUF
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import LFS_POINTER, read_json

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"

# What a training program keeps beside the weights.
_OF_TRAINING = re.compile(r"training_args|optimizer|scheduler|scaler|rng_state|.*_states")
# Weights in other forms, by a pattern of their names: what a person may have taken for ours.
_FOREIGN = {
    "adapter_model.*": "is an adapter: merge it into its base model "
    "(lpaf export DIR --format merged --out NEW) and use the result",
    "*.gguf": "is a llama.cpp file: name the file, not the folder",
    "consolidated*": "has the format of the original release: convert it for transformers",
    "*.h5": "is a TensorFlow file: load it with transformers 4 (from_tf=True) and save it again",
    "*.msgpack": "is a Flax file: load it with transformers 4 (from_flax=True) and save it again",
    "*.ckpt*": "is a training checkpoint: save the model itself with transformers",
    "*.onnx": "is an ONNX graph: give the checkpoint that it was exported from",
    "*.safetensors": f"is not named {WEIGHTS}: rename it if it has all weights",
    "*.bin": f"is not named {PICKLED}: rename it if it has all weights",
    "*.pt": f"is not named {PICKLED}: rename it if it has all weights",
    "*.pth": f"is not named {PICKLED}: rename it if it has all weights",
}


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder, in a fixed order.

    They are `model.safetensors`, its shards by their index, the same of `pytorch_model.bin`, or the
    file of llama.cpp that the folder was made for.

    Raises:
        LpafError: there are none, one is a pointer of git-lfs, or an index is damaged or names a
            file that is not there.
    """
    files = _named(folder)
    for file in files:
        with file.open("rb") as content:
            if content.read(len(LFS_POINTER)) == LFS_POINTER:
                raise LpafError(
                    f"{file} is damaged or cannot be read: it is a git-lfs pointer; run git lfs "
                    "pull"
                )
    return files


def bytes_of_weights(folder: Path) -> int:
    """What the files take on disk; see `weight_files`."""
    return sum(file.stat().st_size for file in weight_files(folder))


def refuse_pickled(folder: Path) -> None:
    """Raise LpafError where the weights are pickled: such a file can only be read whole."""
    for file in weight_files(folder):
        if file.suffix == ".bin":
            raise LpafError(
                f"{file} cannot be read tensor by tensor: save the model as safetensors"
            )


def _named(folder: Path) -> list[Path]:
    for name in (WEIGHTS, PICKLED, GGUF):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    raise LpafError(f"{folder} has no {WEIGHTS}{_instead(folder)}")


def _shards(index: Path) -> list[Path]:
    values = read_json(index)
    names = values.get("weight_map") if isinstance(values, Mapping) else None
    if not isinstance(names, Mapping) or not names:
        raise LpafError(f"{index} is damaged: it has no weight_map; copy the folder again")
    if odd := [x for x in names.values() if not isinstance(x, str) or x != Path(x).name]:
        raise LpafError(f"{index} is damaged: {odd[0]!r} is not the name of a file beside it")
    shards = sorted(set(names.values()))
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        there = sorted(f.name for f in index.parent.glob(f"*{Path(shards[0]).suffix}"))
        found = f"; there are {_listed(there)}" if there else ""
        raise LpafError(
            f"{index} names {len(shards)} files, of which {len(missing)} do not exist, such as "
            f"{missing[0]}{found}: copy the whole folder again"
        )
    return [index.parent / shard for shard in shards]


def _instead(folder: Path) -> str:
    """What is to be said of the files that a folder without weights holds."""
    for name in (WEIGHTS, PICKLED):
        stem, ending = name.split(".")
        if shards := sorted(f.name for f in folder.glob(f"{stem}-*-of-*.{ending}")):
            return f": it has {_listed(shards)}, but {name}.index.json is missing"
    for pattern, what in _FOREIGN.items():
        files = (file.name for file in folder.glob(pattern) if file.is_file())
        if found := sorted(name for name in files if not _OF_TRAINING.match(name)):
            return f": {found[0]} {what}"
    return ""


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
