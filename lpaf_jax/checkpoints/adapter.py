"""Adapters in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

Tensors are called `base_model.model.<module>.lora_A.weight`, (r, in), and `lora_B.weight`,
(out, r), by the module of PyTorch that they are added to; of a layer of factors these are its
`down` and its `up`. Beside them lie whole tensors that take the place of the base model's: a new
head, biases.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from lpaf_jax.checkpoints.names import file_key, file_name, is_transposed
from lpaf_jax.checkpoints.tensors import read_file
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import atomic_dir, read_json, write_json
from lpaf_jax.models.families import Family, Head
from lpaf_jax.models.functional import fixed_arrays, parameters, set_parameters
from lpaf_jax.models.lora import Update, adaptable, put_adapters, updates

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OUTER = "base_model.model."
_A, _B = "lora_A.weight", "lora_B.weight"
# What a head is for, as PEFT calls it.
_TASKS: dict[Head, str] = {
    "classification": "SEQ_CLS",
    "span": "QUESTION_ANS",
    "lm": "CAUSAL_LM",
}
# Heads that PEFT keeps with an adapter.
HEADS = ("classifier.", "score.", "qa_outputs.")
SCALE = "lora_scale"
"""What `adapter_tensors` calls s, which all adapters of a model share."""
# They change the base model before training: W of its checkpoint is not what the update adds to.
_OTHER_BASES = ("pissa", "olora", "loftq", "corda", "lora_ga")


class Adapter(NamedTuple):
    """What a folder of PEFT holds.

    Attributes:
        folder: where it lies.
        base: what it calls the model it was trained on.
        head: that the model has; None where it does not say.
        updates: A, (in, r), B, (r, out), and their scale, by module.
        whole: other tensors by name.
    """

    folder: Path
    base: str
    head: Head | None
    updates: dict[str, Update]
    whole: dict[str, np.ndarray]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder of PEFT.

    Raises:
        LpafError: a file is missing or damaged, the adapter is of another kind than LoRA, or needs
            more of the base model than its weights.
    """
    if not is_adapter(folder):
        raise LpafError(
            f"{folder} is not a PEFT adapter: it has no {CONFIG}, or has a model beside it"
        )
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict):
        raise LpafError(f"{folder / CONFIG} is not a JSON object")
    _refuse(values, folder)
    if not (folder / WEIGHTS).is_file():
        raise LpafError(
            f"{folder} has no {WEIGHTS}: save the adapter with PEFT's save_pretrained()"
        )
    found: dict[str, dict[str, np.ndarray]] = {}
    whole = {}
    for name, x in read_file(folder / WEIGHTS):
        module = name.removeprefix(_OUTER)
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise LpafError(f"{folder / WEIGHTS}: tensor {name} contains NaN or infinity")
        for side in (_A, _B):
            if module.endswith(f".{side}"):
                found.setdefault(module.removesuffix(f".{side}"), {})[side] = x
                break
        else:
            if "lora_" in module:
                raise LpafError(
                    f"{folder / WEIGHTS}: {name} is not an update of a linear layer, and no "
                    "others are supported: merge it with PEFT's merge_and_unload()"
                )
            whole[module] = x
    parts = {}
    for module, pair in found.items():
        flat = len(pair) < 2 or {x.ndim for x in pair.values()} != {2}
        if flat or pair[_A].shape[0] != pair[_B].shape[1]:
            raise LpafError(f"{folder / WEIGHTS}: {module} needs {_A} and {_B} of the same rank")
        a, b = pair[_A].T, pair[_B].T
        parts[module] = Update(jnp.asarray(a), jnp.asarray(b), _scale(values, module, a.shape[1]))
    if not parts:
        raise LpafError(f"{folder / WEIGHTS} has no LoRA weights")
    heads = {task: head for head, task in _TASKS.items()}
    base = values.get("base_model_name_or_path") or ""
    return Adapter(folder, base, heads.get(values.get("task_type") or ""), parts, whole)


def load_adapter(model: nnx.Module, adapter: Adapter, family: Family) -> None:
    """Put the adapter beside the layers of its base model; other tensors take their places.

    Raises:
        LpafError: the model has no such layer, or one of another shape.
    """
    params = parameters(model)
    places: dict[str, tuple[str, tuple[int, int]]] = {}
    for path, layer in nnx.iter_modules(model):
        for each, shape in adaptable(layer, ".".join(map(str, path))).items():
            places[file_key(f"{each}.weight", family)] = each, shape
    placed = {}
    for module, update in adapter.updates.items():
        place = places.get(file_key(f"{module}.weight", family))
        size = len(update.a), update.b.shape[1]
        if place is None and module == "lm_head":
            raise LpafError(
                f"{adapter.folder}: its update of the head cannot be added, as the base model's "
                "head is tied to its embeddings: merge it with PEFT's merge_and_unload()"
            )
        if place is None or place[1] != size:
            there = "no linear layer" if place is None else f"one of shape {place[1]}"
            raise LpafError(
                f"{adapter.folder}: its update of {module} is for a layer of shape {size}, but "
                f"the base model has {there}: name the model that it was trained on"
            )
        placed[place[0]] = update
    names = {file_key(file_name(param, params), family): param for param in params}
    whole = {}
    for name, x in adapter.whole.items():
        param = names.get(file_key(name, family))
        if param is None:
            raise LpafError(f"{adapter.folder}: the base model has no tensor {name}")
        whole[param] = x.T if is_transposed(param, family, params) else x
        if whole[param].shape != params[param].shape:
            raise LpafError(
                f"{adapter.folder}: {name} has shape {list(x.shape)}, which does not fit the base "
                "model"
            )
    set_parameters(model, {param: jnp.asarray(x) for param, x in whole.items()})
    put_adapters(model, placed)


def adapter_tensors(model: nnx.Module) -> dict[str, np.ndarray]:
    """The adapters of a model by the names and in the shapes that PEFT has for them, and `SCALE`.

    With them goes the head of a classifier, or of spans, though it was not trained: PEFT takes it
    from the adapter.
    """
    found = {}
    params = parameters(model) | fixed_arrays(model)
    for path, x in params.items():
        if path.startswith(HEADS):
            # The heads of all families lie in the file as (out, in).
            name = f"{_OUTER}{file_name(path, params)}"
            found[name] = np.ascontiguousarray(np.asarray(x, np.float32).T)
    for path, update in updates(model).items():
        for side, factor in ((_A, update.a), (_B, update.b)):
            found[f"{_OUTER}{path}.{side}"] = np.ascontiguousarray(np.asarray(factor).T)
        found[SCALE] = np.float32(update.scale).reshape(1)
    return found


def save_adapter(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    base: str,
    family: Family,
    head: Head,
) -> None:
    """Write a folder that PEFT loads; it appears whole or not at all.

    Args:
        folder: what stands there is replaced.
        tensors: from `adapter_tensors`.
        base: path or hub id of the model that they are added to.
        family: of the model.
        head: of the model.
    """
    rank = len(next(x for name, x in tensors.items() if name.endswith(_A)))
    modules = [name[len(_OUTER) : -len(_A) - 1] for name in tensors if name.endswith(_A)]
    config = {
        "peft_type": "LORA",
        "task_type": _TASKS[head],
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": float(tensors[SCALE][0]) * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(family.as_stored(module) for module in modules),
        "target_modules": modules,
        "inference_mode": True,
    }
    with atomic_dir(folder) as target:
        write_json(target / CONFIG, config)
        own = {name: x for name, x in tensors.items() if name != SCALE}
        save_file(own, target / WEIGHTS, metadata={"format": "pt"})


def _refuse(values: Mapping[str, Any], folder: Path) -> None:
    kind = values.get("peft_type")
    start = str(values.get("init_lora_weights", True))
    why = None
    if kind != "LORA":
        why = f"of kind {kind}"
    elif values.get("use_dora"):
        why = "of DoRA"
    elif values.get("alora_invocation_tokens"):
        why = "that acts only after certain tokens (aLoRA)"
    elif values.get("lora_bias"):
        why = "with its own biases (lora_bias)"
    elif start.lower().startswith(_OTHER_BASES):
        why = f"that changed its base model first (init_lora_weights: {start})"
    if why is not None:
        raise LpafError(
            f"{folder} is an adapter {why}, which is not supported: merge it with PEFT's "
            "merge_and_unload(), and save the result"
        )


def _scale(values: Mapping[str, Any], module: str, rank: int) -> float:
    """`α / r`, or with rsLoRA `α / √r`; patterns as PEFT reads them."""
    patterns = values.get("alpha_pattern") or {}
    try:
        own = (x for key, x in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
        alpha = next(own, values.get("lora_alpha"))
    except (AttributeError, re.error):
        raise LpafError(
            f"{CONFIG}: alpha_pattern is {patterns!r}, which is not a mapping"
        ) from None
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if alpha is None or not number or not math.isfinite(alpha):
        raise LpafError(f"{CONFIG}: lora_alpha is {alpha!r}, but must be a finite number")
    return float(alpha / (math.sqrt(rank) if values.get("use_rslora") else rank))
