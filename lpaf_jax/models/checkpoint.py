"""Checkpoints in and out: Hugging Face folders, dense or factorized.

A dense checkpoint is a plain BERT folder. A factorized one says `model_type: lpaf_bert`, lists the
rank of every factorized layer in its config under `lpaf_ranks`, and stores `<path>.down.weight`,
`<path>.up.weight` and `<path>.up.bias`. The `Auto` classes of `transformers` refuse such a folder,
where under the name of BERT they would load it and quietly initialise the encoder anew.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lpaf_jax.errors import LpafError
from lpaf_jax.files import atomic_dir, read_json
from lpaf_jax.linalg import LowRank
from lpaf_jax.models.bert import BertClassifier, BertConfig
from lpaf_jax.models.functional import Params, layer_at, parameters, replace_layer, set_parameters
from lpaf_jax.models.initial import Initializer
from lpaf_jax.models.layers import LowRankLinear

FACTORIZED_TYPE = "lpaf_bert"
WEIGHTS = "model.safetensors"
_EXTRA = "state.safetensors"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
# What the source's config.json says of its own files: ours hold float32, and ranks of their own.
_NOT_CARRIED = ("_name_or_path", "dtype", "lpaf_ranks", "torch_dtype")
# Leaf in the model -> leaf in the file; the ones below are stored transposed, (out, in).
_LEAVES = {"kernel": "weight", "a": "down.weight", "b": "up.weight"}


def load_model(folder: Path, *, num_labels: int | None = None, seed: int = 0) -> BertClassifier:
    """A classifier with the weights in `folder`.

    Args:
        folder: a Hugging Face BERT folder, or one written by `save_model`.
        num_labels: classes of the head; one that the folder does not hold, or holds for another
            number of classes, is drawn anew. None takes the head of the folder.
        seed: of a newly drawn head.

    Raises:
        LpafError: a file or tensor is missing, damaged, of the wrong shape or not finite; the
            folder holds no head, and none was to be drawn.
    """
    values = read_json(folder / "config.json")
    kind = values.get("model_type")
    if kind not in ("bert", FACTORIZED_TYPE):
        raise LpafError(
            f"{folder}: model_type {kind!r} is not supported; a BERT checkpoint is needed"
        )
    if num_labels is not None:
        values = {**values, "num_labels": num_labels}
    config = BertConfig.from_json(values)
    # Shapes alone: drawing arrays that the files then replace takes longer than all the rest.
    model = nnx.eval_shape(lambda: BertClassifier(config, jax.random.key(seed)))
    dense = parameters(model)
    for path, rank in values.get("lpaf_ranks", {}).items():
        if f"{path}.kernel" not in dense:
            raise LpafError(f"{folder}: lpaf_ranks in config.json names no layer: {path}")
        replace_layer(model, path, _empty_low_rank(layer_at(model, path), rank))
    head = Initializer(jax.random.key(seed)).linear(config.hidden_size, config.num_labels)
    drawn = {f"classifier.{name}": array for name, array in parameters(head).items()}
    found = _read_parameters(folder, parameters(model))
    if num_labels is None and not found.keys() >= drawn.keys():
        raise LpafError(
            f"{folder} holds no classification head for the {config.num_labels} classes of its "
            "config.json"
        )
    set_parameters(model, drawn | found)
    return model


def save_model(
    model: BertClassifier,
    folder: Path,
    *,
    source: Path,
    label_names: list[str],
    card: str,
    reads: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> None:
    """Write `model` as a folder that `load_model` reads; it appears whole or not at all.

    Args:
        model: dense or factorized; its low-rank layers are stored as factors.
        folder: where to; what stands there is replaced.
        source: the folder whose `config.json` and tokenizer go along.
        label_names: name of each class, in order.
        card: text of the model card, README.md.
        reads: what its texts are, kept in `config.json` as `lpaf_reads`: `length`, the longest
            in tokens, and `pairs`, whether they come in twos.
        extra: further arrays to keep beside the weights, in `state.safetensors`.

    Raises:
        LpafError: the folder cannot be written.
        ValueError: not as many names as the head has classes.
    """
    classes = model.classifier.kernel[...].shape[1]
    if len(label_names) != classes:
        raise ValueError(f"{len(label_names)} label names for a head of {classes} classes")
    params = parameters(model)
    low_rank = {
        path.removesuffix(".a"): int(a.shape[1])
        for path, a in params.items()
        if path.endswith(".a")
    }
    with atomic_dir(folder) as target:
        config = _config(read_json(source / "config.json"), label_names, low_rank)
        config |= {} if reads is None else {"lpaf_reads": reads}
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (target / "README.md").write_text(card, encoding="utf-8")
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        tensors = {file_name(path, params): _to_file(path, a) for path, a in params.items()}
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
        if extra is not None:
            arrays = {name: np.ascontiguousarray(array) for name, array in extra.items()}
            save_file(arrays, target / _EXTRA)
        for file in target.glob("*.safetensors"):  # the library lets only their owner read them
            shutil.copymode(target / "config.json", file)


def check_saved(folder: Path) -> None:
    """See whether the files that `save_model` left in `folder` are whole, at the cost of a look.

    Raises:
        LpafError: config.json is missing or no JSON, or the weights or the arrays beside them are
            missing, damaged or cut off: their headers and sizes are read, not their numbers.
    """
    read_json(folder / "config.json")
    files = _weight_files(folder)
    files += [folder / _EXTRA] if (folder / _EXTRA).is_file() else []
    for file in files:
        with _opened(file):
            pass


def load_extra(folder: Path) -> dict[str, np.ndarray]:
    """The arrays that `save_model` was given as `extra`; empty where there were none."""
    path = folder / _EXTRA
    return dict(_read_file(path)) if path.is_file() else {}


def file_name(path: str, params: Params) -> str:
    """Name in the file of the parameter at `path`, one of `params`.

    `x.query.kernel` is `x.query.weight`, and the bias beside factors belongs to the second one.
    """
    parent, _, leaf = path.rpartition(".")
    if leaf == "bias" and f"{parent}.a" in params:
        return f"{parent}.up.bias"
    return f"{parent}.{_LEAVES.get(leaf, leaf)}"


def _config(
    values: dict[str, Any], label_names: list[str], low_rank: dict[str, int]
) -> dict[str, Any]:
    values = {k: v for k, v in values.items() if k not in _NOT_CARRIED}
    values["id2label"] = {str(i): name for i, name in enumerate(label_names)}
    values["label2id"] = {name: i for i, name in enumerate(label_names)}
    values["num_labels"] = len(label_names)
    values["architectures"] = ["BertForSequenceClassification"]
    values["model_type"] = "bert"
    if low_rank:
        values["architectures"] = ["LpafBertForSequenceClassification"]
        values["model_type"] = FACTORIZED_TYPE
        values["lpaf_ranks"] = low_rank
    return values


def _to_file(path: str, array: jax.Array) -> np.ndarray:
    value = np.asarray(array)
    if path.rpartition(".")[2] in _LEAVES:
        value = value.T
    # safetensors writes the memory of an array as it lies: a transposed view would be scrambled.
    return np.ascontiguousarray(value)


def _empty_low_rank(dense: Any, rank: int) -> LowRankLinear:
    m, n = dense.kernel.shape
    return LowRankLinear(LowRank(jnp.zeros((m, rank)), jnp.zeros((rank, n))), jnp.zeros(n))


def _read_parameters(folder: Path, wanted: Params) -> Params:
    by_name = {_file_key(file_name(path, wanted)): path for path in wanted}
    found: Params = {}
    for file in _weight_files(folder):
        for name, value in _read_file(file):
            path = by_name.get(_file_key(name))
            if path is None:
                continue
            array = value.T if path.rpartition(".")[2] in _LEAVES else value
            if array.shape != wanted[path].shape:
                if path.startswith("classifier."):
                    continue
                raise LpafError(
                    f"{file}: tensor {name} has shape {value.shape}, which does not fit "
                    f"config.json ({wanted[path].shape} expected, as (in, out))"
                )
            if not np.isfinite(array).all():
                raise LpafError(f"{file}: tensor {name} holds NaN or infinity")
            found[path] = jnp.asarray(array, wanted[path].dtype)
    missing = [path for path in wanted if path not in found and not path.startswith("classifier.")]
    if missing:
        first = file_name(missing[0], wanted)
        raise LpafError(f"{folder}: {len(missing)} tensors are missing, {first} among them")
    return found


def _file_key(name: str) -> str:
    """Checkpoints of the bare encoder carry no `bert.` prefix, and old ones call norms gamma."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    raise LpafError(f"{folder} holds no {WEIGHTS}")


def _read_file(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    with _opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            yield name, tensors.get_tensor(name)


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise LpafError(f"{file} is damaged or cannot be read: {error}") from error
