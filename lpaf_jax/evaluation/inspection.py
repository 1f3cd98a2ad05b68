"""What was done to a model, read from the headers of its files: no tensor is loaded."""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpaf_jax.checkpoints.checkpoint import factored_layers, shapes_of
from lpaf_jax.checkpoints.contents import Source, read_source
from lpaf_jax.checkpoints.factored import Factored
from lpaf_jax.checkpoints.names import file_key
from lpaf_jax.checkpoints.outputs import class_names
from lpaf_jax.checkpoints.tensors import Header, check_kind
from lpaf_jax.checkpoints.weight_files import bytes_of_weights
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.folders import run_of, run_record
from lpaf_jax.factors import FIELDS
from lpaf_jax.models.compressible import is_compressible
from lpaf_jax.models.families import Family, family_name, named_head

_FLOATS = ("F", "BF")
_LOG = logging.getLogger(__name__)


def inspect_model(place: Path) -> dict[str, Any]:
    """Family, matrices, sizes and origin of the model in `place`, dense or factorized.

    Reads config.json and the headers of the weights, so its cost does not depend on the size of
    the model. Pickled weights are mapped by PyTorch, which reads their headers, too.

    Args:
        place: folder of a model, maybe inside the folder of a run.

    Returns:
        JSON values. `matrices` has one entry for each matrix that is compressible or factorized:
        its `name`, `shape` (in, out), the `kind` of its factors (None where it is dense), `rank`
        (None where it has none), `summary` (what a table shows of its factors), `parameters`
        stored, `dense_parameters`, `flop` a token, `bytes` and `dtype`, and whether it is
        `compressible`, which factorized embeddings are not; `parameters` has the sums of those that
        are ("encoder") and of all there is, as in the metrics of a run. A finished `run` has the
        primary `metric` of its task and its value, `scores`, by stage; without a task, `judged_by`
        names the text.

    Raises:
        LpafError: a file is missing or damaged, the family is not known, or the model is
            quantized.
    """
    source = read_source(place)
    values, family = source.values, source.family
    head = named_head(values, family)
    labels = class_names(values, place) if head == "classification" else []
    left = _left(source)
    # Integers and booleans are tables of positions and masks that old checkpoints carry along.
    layers = factored_layers(source)
    taken = {key for path, of in layers.items() for key in _keys(source, path, of)}
    headers = {
        key: header
        for key, header in source.by_key().items()
        if key in taken or _layer(key) is not None or header.dtype.upper().startswith(_FLOATS)
        if header not in left
    }
    plain = {key: header for key, header in headers.items() if key not in taken}
    matrices = _in_order(_factorized(source, layers) + _dense(plain, family))
    of = [m for m in matrices if m["compressible"]]
    stored = sum(m["parameters"] for m in of)
    dense = sum(m["dense_parameters"] for m in of)
    gone = sum(m["dense_parameters"] - m["parameters"] for m in matrices)
    total = sum(math.prod(header.shape) for header in headers.values())
    bytes_of = Counter({"matrices": sum(m["bytes"] for m in of)})
    bytes_of["rest"] = sum(header.bytes for header in headers.values()) - bytes_of["matrices"]
    return {
        "folder": str(place),
        "family": family_name(values, str(place)),
        "head": head,
        "labels": labels,
        "problem_type": values.get("problem_type"),
        "factorized": bool(layers),
        "dtypes": sorted({header.dtype for header in headers.values()}),
        "marks": {key: v for key, v in values.items() if _is_mark(key)},
        "run": _origin(place),
        "matrices": matrices,
        "parameters": {
            "encoder": stored,
            "encoder_dense": dense,
            "total": total,
            "total_dense": total + gone,
        },
        "encoder_params_ratio": stored / dense if dense else 1.0,
        "total_params_ratio": total / (total + gone) if total else 1.0,
        "bytes": dict(bytes_of),
        "bytes_on_disk": bytes_of_weights(place),
    }


def _is_mark(key: str) -> bool:
    """Whether config.json has this key from us; factors are told with the matrices."""
    return key.startswith("lpaf_") and key not in FIELDS


def _left(source: Source) -> list[Header]:
    """The tensors that are no part of the model; where it is not whole, which is said, none."""
    try:
        return source.match(shapes_of(source)).left
    except LpafError as error:
        _LOG.warning("%s", error)
        return []


def _layer(key: str) -> str | None:
    """The path of the compressible layer whose dense weight has this key."""
    layer = key.removesuffix(".weight")
    return layer if key.endswith(".weight") and is_compressible(f"{layer}.kernel") else None


def _keys(source: Source, path: str, layer: Factored) -> list[str]:
    """Keys of the factors of a layer; its bias is counted with the rest, as others are."""
    names = layer.names(path).items()
    return [file_key(name, source.family) for leaf, name in names if leaf != "bias"]


def _factorized(source: Source, layers: Mapping[str, Factored]) -> list[dict[str, Any]]:
    found, headers = [], source.by_key()
    for path, layer in layers.items():
        keys = _keys(source, path, layer)
        for key in keys:
            if key not in headers:
                raise LpafError(f"{source.folder}: tensor {key} is missing")
            check_kind(headers[key].dtype, headers[key].file, headers[key].name)
        (kind, record, shape), name = layer, file_key(path, source.family)
        facts = {"kind": kind.name, "rank": record.get("rank"), "summary": kind.summary(record)}
        flop = kind.flop(record, shape)
        found.append(_matrix(name, shape, [headers[key] for key in keys], flop, facts))
    return found


def _dense(headers: Mapping[str, Header], family: Family) -> list[dict[str, Any]]:
    found = []
    for tensor, header in headers.items():
        layer = _layer(tensor)
        if layer is None:
            continue
        check_kind(header.dtype, header.file, header.name)
        turned = not family.as_stored(f"{family.prefix}.{layer}")
        m, n = header.shape[::-1] if turned else header.shape
        facts = {"kind": None, "rank": None, "summary": "full"}
        found.append(_matrix(layer, (m, n), [header], 2 * m * n, facts))
    return found


def _matrix(
    name: str, shape: tuple[int, int], headers: list[Header], flop: int, facts: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(shape),
        **facts,
        "parameters": sum(math.prod(header.shape) for header in headers),
        "dense_parameters": math.prod(shape),
        "compressible": is_compressible(f"{name}.kernel"),
        "flop": flop,
        "bytes": sum(header.bytes for header in headers),
        "dtype": headers[0].dtype,
    }


def _in_order(matrices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By the numbers in their names: 10 after 9."""
    return sorted(
        matrices, key=lambda m: [int(x) if x.isdigit() else x for x in m["name"].split(".")]
    )


def _origin(place: Path) -> dict[str, Any] | None:
    """The run that a model belongs to; None where it lies alone."""
    found = run_of(place)
    if found is None:
        return None
    run, stage = found
    settings, metrics = run_record(run, "settings.json"), run_record(run, "metrics.json")
    metric = metrics.get("metrics", ["accuracy"])[0]
    scores = {name: figures[metric] for name, figures in metrics.get("stages", {}).items()}
    kept = ("recipe", "finished", "judged_by")
    about_run: dict[str, Any] = {k: metrics[k] for k in kept if k in metrics}
    about_run |= {"metric": metric, "scores": scores} if scores else {}
    return {"folder": str(run), "stage": stage, "settings": settings} | about_run
