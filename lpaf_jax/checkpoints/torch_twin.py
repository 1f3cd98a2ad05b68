"""The same model in PyTorch: that of `transformers`, its factorized layers those of their kind.

Needs PyTorch. It is what speed is compared with and what exporters of PyTorch's are given.
"""

import inspect
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

from lpaf_jax.checkpoints.checkpoint import plain_tensors
from lpaf_jax.checkpoints.contents import read_source
from lpaf_jax.checkpoints.names import file_key
from lpaf_jax.checkpoints.tensors import read_file
from lpaf_jax.checkpoints.weight_files import weight_files
from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors import KINDS, FactorKind, Record, read_records
from lpaf_jax.models.families import Head, family_name


def torch_twin(
    folder: Path, head: Head | None = None, *, timed: bool = False, drawn_dense: bool = False
) -> Any:
    """The PyTorch model with the weights of a model folder, dense or factorized, in evaluation.

    Args:
        folder: as `lpaf_jax.checkpoints.load_model` reads it.
        head: None takes the one that the folder's config names, or else the first of the family.
        timed: it is to be timed, and what it answers is of no matter: a head that the folder does
            not hold is drawn, and padding that its config does not name is made up.
        drawn_dense: of the folder take the shape alone: a dense model with drawn weights.

    Raises:
        LpafError: a tensor of the folder is missing, or a decoder's classifier has no
            `pad_token_id`.
        ImportError: PyTorch is not installed.
    """
    import torch
    import transformers

    source = read_source(folder, head)
    names = {(h.file, h.name): name for name, h in plain_tensors(source).items()}
    values, family, chosen = source.values, source.family, source.head
    name = family_name(values, str(folder))
    carried = {k: v for k, v in values.items() if k not in ("auto_map", "model_type")}
    config = transformers.CONFIG_MAPPING[name].from_dict(carried)
    config.dtype = torch.float32
    if family.block and chosen == "classification" and config.pad_token_id is None:
        if not timed:
            raise LpafError(
                f"{folder}: in PyTorch, a decoder with a classification head needs pad_token_id "
                "to find the end of a text; set it in config.json to the padding id"
            )
        config.pad_token_id = 0  # it refuses several texts without; the time is that of any
    config.use_cache = False  # of a decoder: one pass needs no memory of those before
    model = getattr(transformers, family.architectures[chosen])(config)
    if drawn_dense:
        return model.eval()
    records = read_records(values, folder)
    builders = {kind: _in_torch(KINDS[kind]) for kind in {r["kind"] for r in records.values()}}
    for path, record in records.items():
        factors = builders[record["kind"]](model.get_submodule(path), record)
        model.set_submodule(path, factors)
        if hasattr(factors, "tie"):
            factors.tie(model)
    stored = {
        # A copy: PyTorch takes neither the bfloat16 of numpy nor memory that is read only.
        file_key(names[file, tensor], family): torch.from_numpy(np.array(value, np.float32))
        for file in weight_files(folder)
        for tensor, value in read_file(file)
        if (file, tensor) in names
    }
    own = {file_key(tensor, family): tensor for tensor in model.state_dict()}
    found = {own[key]: value for key, value in stored.items() if key in own}
    left, _ = model.load_state_dict(found, strict=False)
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    missing = [name for name in left if name not in tied]  # of the head: the rest was looked at
    if missing and not timed:
        raise LpafError(f"{folder} has no {chosen} head: {missing[0]} is missing")
    model.tie_weights()
    return model.eval()


def takes_types(model: Any) -> bool:
    """Whether a PyTorch model is called with token types."""
    return "token_type_ids" in inspect.signature(model.forward).parameters


def _in_torch(kind: FactorKind) -> Callable[[Any, Record], Any]:
    """The function of a kind that makes a module of PyTorch's of a dense one and a record."""
    spec = spec_from_file_location(f"lpaf_{kind.name}_torch", kind.torch_file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[Any, Record], Any] = getattr(module, kind.name)
    return found
