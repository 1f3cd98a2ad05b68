"""Checkpoints in and out: Hugging Face folders, dense or factorized.

A dense checkpoint is a plain folder of its family. A factorized one says `model_type: lpaf_bert`
(or another family), has a record of every factorized layer in its config under `lpaf_factors`, and
stores its factors by the names that their kind has, such as `<path>.down.weight`. The `Auto`
classes of `transformers` load such a folder by the code that lies in it, where that is trusted, and
else refuse it: under the family's own name they would load it and quietly draw the encoder anew.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from lpaf_jax.checkpoints.contents import Source, read_source
from lpaf_jax.checkpoints.factored import Factored, factored, put_empty, records_of
from lpaf_jax.checkpoints.names import file_name, is_transposed
from lpaf_jax.checkpoints.remote_code import MODELING_FILE, modeling_code, remote_fields
from lpaf_jax.checkpoints.tensors import Header, opened, read_file, share_weights, stored_in
from lpaf_jax.checkpoints.tokenizer_files import TOKENIZER_FILES, name_tokenizer
from lpaf_jax.checkpoints.weight_files import WEIGHTS, weight_files
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import atomic_dir, read_json
from lpaf_jax.core.folders import model_folder
from lpaf_jax.factors import FIELDS, Record, read_records, recorded
from lpaf_jax.models.configs import label_map
from lpaf_jax.models.families import (
    FAMILIES,
    Family,
    Head,
    family_name,
    head_of,
    named_head,
)
from lpaf_jax.models.functional import Params, parameters, set_parameters
from lpaf_jax.models.initial import Initializer

_EXTRA = "state.safetensors"
# What travels from folder to folder beside the weights: the tokenizer, and how text is made.
BESIDE = (*TOKENIZER_FILES, "generation_config.json")
# What the source's config.json says of its own files: ours hold float32, and factors of their own.
_NOT_CARRIED = ("_name_or_path", "auto_map", "dtype", "torch_dtype", *FIELDS)


def load_model(
    folder: Path, *, head: Head | None = None, num_labels: int | None = None, seed: int = 0
) -> Any:
    """The model in `folder`, with its weights as float32.

    Args:
        folder: a Hugging Face folder of one of the families, or one written by `save_model`.
        head: "classification" (regression, where it has one output), "span" or "lm". None takes
            the one that the folder's config names, or else the first of the family.
        num_labels: outputs of a classification head; None takes what the folder has.
        seed: of a head that is drawn anew: one that is asked for by `head` or `num_labels` and
            that the folder does not hold, or holds for another number of outputs. A head of
            language models is never drawn.

    Raises:
        LpafError: a file or tensor is missing, damaged, of the wrong shape or not finite; the
            folder is quantized, or its weights are not whole (see `Source.match`); the family has
            no such head; the folder holds no head, or one of another shape, and none was to be
            drawn.
    """
    source = read_source(folder, head)
    if num_labels is not None:
        source = source._replace(values={**source.values, "num_labels": num_labels})
    model = empty_model(source, seed)
    wanted = parameters(model)
    found, unfit = _read(source, wanted)
    # Sorted, so that what is drawn does not hang on the order of attributes.
    absent = sorted(path for path in wanted if path not in found)
    if absent and (source.head == "lm" or (head is None and num_labels is None)):
        other = next((unfit[path] for path in absent if path in unfit), None)
        first = file_name(absent[0], wanted)
        raise LpafError(other or f"{folder} has no {source.head} head: {first} is missing")
    init = Initializer(jax.random.key(seed), source.family.config(source.values).initializer_range)
    drawn = {
        path: init.normal(*shape) if len(shape) > 1 else jnp.zeros(shape)
        for path, shape in ((path, wanted[path].shape) for path in absent)
    }
    set_parameters(model, drawn | found)
    return model


def empty_model(source: Source, seed: int = 0) -> Any:
    """A model of shapes alone: to draw arrays that files then replace would take the longest."""
    config = source.family.config(source.values)
    model = nnx.eval_shape(lambda: source.family.heads[source.head](config, jax.random.key(seed)))
    records = read_records(source.values, source.folder)
    put_empty(model, factored(model, records, source.folder))
    return model


def factored_layers(source: Source) -> dict[str, Factored]:
    """The factorized layers of a folder by path; empty where it is dense.

    Raises:
        LpafError: config.json has a record that is of no kind that is known or does not fit.
    """
    records = read_records(source.values, source.folder)
    if not records:
        return {}
    dense = source._replace(values={k: v for k, v in source.values.items() if k not in FIELDS})
    return factored(empty_model(dense), records, source.folder)


def shapes_of(source: Source) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters of a model, by path."""
    return {path: x.shape for path, x in parameters(empty_model(source)).items()}


def plain_tensors(source: Source) -> dict[str, Header]:
    """All tensors of a folder by the names that PyTorch knows them by, without those of wrappers.

    Where the names lack the prefix of the family, as those of models without a head do, they lack
    it here. What the model does not take keeps its name.

    Raises:
        LpafError: see `Source.match`.
    """
    shapes = shapes_of(source)
    names = {h: file_name(path, shapes) for path, h in source.match(shapes).tensors.items()}
    found: dict[str, Header] = {}
    for header in source.headers:
        plain = names.get(header, header.name)
        bare = plain.removeprefix(f"{source.family.prefix}.")
        found[bare if header.name == bare else plain] = header
    return found


def save_model(
    model: Any,
    folder: Path,
    *,
    source: Path,
    label_names: list[str] | None,
    card: str,
    reads: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    stored: Callable[[str], np.dtype[Any]] | None = None,
) -> None:
    """Write `model` as a folder that `load_model` reads; it appears whole or not at all.

    Args:
        model: dense or factorized; its factors are stored as factors. Where it has `resized`, of
            `lpaf_jax.models.groups`, config.json says so.
        folder: where to; what stands there is replaced.
        source: the folder whose `config.json` and files of `BESIDE` go along.
        label_names: name of each output of a classification head, in order; None for others.
        card: text of the model card, README.md.
        reads: what it reads and is judged by, kept in `config.json` as `lpaf_reads`; see
            `lpaf_jax.tasks.kinds.TaskSpec`.
        extra: further arrays to keep beside the weights, in `state.safetensors`.
        stored: the dtype that a parameter has in the file, by its path; None is float32 for all.

    Raises:
        LpafError: the folder cannot be written.
        ValueError: not as many names as the head has classes.
    """
    values = read_json(source / "config.json") | dict(getattr(model, "resized", ()))
    name = family_name(values, str(source))
    family = FAMILIES[name]
    head = head_of(model, family)
    if label_names is not None and len(label_names) != model.num_labels:
        raise ValueError(f"{len(label_names)} label names for a head of {model.num_labels} classes")
    params = parameters(model)
    if head == "lm":
        values["tie_word_embeddings"] = model.lm_head is None
    config = saved_config(values, family.architectures[head], records_of(model), label_names)
    config |= {} if reads is None else {"lpaf_reads": reads}
    if stored is not None and (dtype := dtype_in(values)) is not None:
        config["dtype"] = dtype
    with atomic_dir(folder) as target:
        write_beside(target, source, config, card)
        tensors = {file_name(path, params): _to_file(path, params, family) for path in params}
        if stored is not None:
            narrow = {file_name(path, params): stored(path) for path in params}
            tensors = {name: x.astype(narrow[name]) for name, x in tensors.items()}
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
        if extra is not None:
            arrays = {name: np.ascontiguousarray(array) for name, array in extra.items()}
            save_file(arrays, target / _EXTRA)
        share_weights(target)


def check_saved(folder: Path) -> None:
    """See whether the files that `save_model` left in `folder` are whole, at the cost of a look.

    Raises:
        LpafError: config.json is missing or no JSON, or the weights or the arrays beside them are
            missing, damaged or cut off: their headers and sizes are read, not their numbers.
    """
    read_json(folder / "config.json")
    files = weight_files(folder)
    files += [folder / _EXTRA] if (folder / _EXTRA).is_file() else []
    for file in files:
        with opened(file):
            pass


def load(place: Path | str) -> Any:
    """The model of a finished run, or in a model folder, with its weights as float32.

    Args:
        place: the `--out` folder of a run, a folder in it, or any folder with a Hugging Face
            checkpoint of one of the families.

    Raises:
        LpafError: nothing there can be loaded; the message says why.
    """
    return load_model(model_folder(Path(place)))


def load_extra(folder: Path) -> dict[str, np.ndarray]:
    """The arrays that `save_model` was given as `extra`; empty where there were none."""
    path = folder / _EXTRA
    return dict(read_file(path)) if path.is_file() else {}


def saved_config(
    values: dict[str, Any],
    architecture: str,
    records: Mapping[str, Record],
    label_names: list[str] | None = None,
) -> dict[str, Any]:
    """The `config.json` of a folder that is written.

    Args:
        values: that of its source.
        architecture: what PyTorch calls the dense model.
        records: of the factorized layers, by path; empty for a dense model.
        label_names: of the outputs of a classification head; None leaves them as they are.

    Raises:
        LpafError: those of the source do not name outputs, and no reader of the folder could.
    """
    name = family_name(values, "config.json")
    values = {k: v for k, v in values.items() if k not in _NOT_CARRIED}
    if label_names is not None:
        values["id2label"] = {str(i): name for i, name in enumerate(label_names)}
        values["label2id"] = {name: i for i, name in enumerate(label_names)}
        values["num_labels"] = len(label_names)
        # One output is a value: pipelines of transformers would put it through a sigmoid.
        values.pop("problem_type", None)
        values |= {"problem_type": "regression"} if len(label_names) == 1 else {}
    else:
        label_map(values)
    values["architectures"] = [architecture]
    values["model_type"] = name
    if records:
        values |= remote_fields(name, architecture) | recorded(records)
    return values


def dtype_in(values: Mapping[str, Any]) -> str | None:
    """The dtype that a parsed `config.json` names for the weights, in its new word or its old."""
    found: str | None = values.get("dtype", values.get("torch_dtype"))
    return found


def write_beside(target: Path, source: Path, config: dict[str, Any], card: str) -> None:
    """Write into `target` what lies beside the weights.

    That is the config, the card, what the source has of `BESIDE`, and for a factorized model the
    code by which PyTorch reads it and the class of its tokenizer.
    """
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (target / "README.md").write_text(card, encoding="utf-8")
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if records := read_records(config, source):
        name = family_name(config, "config.json")
        family = FAMILIES[name]
        head = named_head(config, family)
        assert head is not None  # `saved_config` names it
        kinds = {record["kind"] for record in records.values()}
        code = modeling_code(name, family.architectures[head], kinds)
        (target / MODELING_FILE).write_text(code, encoding="utf-8")
        name_tokenizer(source, target)


def _to_file(path: str, params: Params, family: Family) -> np.ndarray:
    value = np.asarray(params[path])
    # safetensors writes the memory of an array as it lies: a transposed view would be scrambled.
    return np.ascontiguousarray(value.T if is_transposed(path, family, params) else value)


def _read(source: Source, wanted: Params) -> tuple[Params, dict[str, str]]:
    """What the folder holds of `wanted`, and by path what does not fit of tensors of the head."""
    contents = source.match({path: x.shape for path, x in wanted.items()})
    places = {(header.file, header.name): path for path, header in contents.tensors.items()}
    found: Params = {}
    for file in weight_files(source.folder):
        stored = stored_in(file)
        for name in list(stored):
            # Popped: what was read of a pickled file is let go when it has its place.
            tensor, path = stored.pop(name), places.get((file, name))
            if path is not None:
                value = tensor.read(is_transposed(path, source.family, wanted))
                found[path] = jnp.asarray(value, wanted[path].dtype)
    return found, contents.unfit
