"""A factorized model as a plain checkpoint of its family, which any tool loads."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lpaf_jax.checkpoints.checkpoint import factored_layers, plain_tensors, saved_config
from lpaf_jax.checkpoints.contents import Source, read_source
from lpaf_jax.checkpoints.factored import Factored
from lpaf_jax.checkpoints.names import is_transposed
from lpaf_jax.checkpoints.tensors import Header, read_tensor
from lpaf_jax.checkpoints.weight_files import refuse_pickled
from lpaf_jax.core.errors import LpafError
from lpaf_jax.export.rewrite import card_of, noted, rewrite
from lpaf_jax.models.families import Family, named_head

_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


def export_dense(place: Path, out: Path, *, dtype: str | None = None) -> None:
    """Write the model in `place` into `out` with its factors multiplied back.

    Each product is taken in float32, and then rounded to the dtype it is stored in. One matrix at
    a time: memory holds its factors, the product and a shard of 256 MiB at most.

    Args:
        place: folder of a factorized model; of a dense one, where only its dtype is to change.
        out: what stands there is replaced.
        dtype: of `rewrite.DTYPES`, for all floating-point tensors; None leaves each as it is, the
            product of factors as they are.

    Raises:
        LpafError: nothing would change, a file is damaged or what it holds is not a model, or
            `out` cannot be written.
    """
    refuse_pickled(place)
    source = read_source(place)
    tensors = plain_tensors(source)
    layers = factored_layers(source)
    if not layers and dtype is None:
        raise LpafError(f"{place} is already dense; --dtype stores it in another dtype")
    config = _config(source, dtype or dtype_of(source))
    rewrite(
        place, out, _multiplied(source, layers, tensors), config, dtype=dtype, card=_card(place)
    )


def _multiplied(
    source: Source, layers: Mapping[str, Factored], tensors: Mapping[str, Header]
) -> Iterator[tuple[str, np.ndarray]]:
    def read(name: str) -> np.ndarray:
        return read_tensor(tensors[name].file, tensors[name].name)

    prefix = f"{source.family.prefix}."
    names = {path: layer.names(path) for path, layer in layers.items()}
    owners = {name: (path, leaf) for path, of in names.items() for leaf, name in of.items()}
    done = set()
    for name in tensors:
        # A folder of a model without a head may lack the prefix.
        lacking = prefix if f"{prefix}{name}" in owners else ""
        path, leaf = owners.get(f"{lacking}{name}", ("", ""))
        plain = path.removeprefix(lacking)
        if not path:
            yield name, read(name)
        elif leaf == "bias":
            yield f"{plain}.bias", layers[path].whole_bias(read(name))
        elif path not in done:
            done.add(path)
            of = ((leaf, name) for leaf, name in names[path].items() if leaf != "bias")
            factors = {leaf: read(name.removeprefix(lacking)) for leaf, name in of}
            yield f"{plain}.weight", _product(source.family, path, layers[path], factors)


def _product(
    family: Family, path: str, layer: Factored, stored: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The dense weight as it is stored, in the dtype of the first of its factors."""
    paths = [f"{path}.{leaf}" for leaf in stored]
    turned = [is_transposed(full, family, paths) for full in paths]
    wide = [x.astype(np.float32) for x in stored.values()]
    factors = {leaf: x.T if back else x for leaf, x, back in zip(stored, wide, turned, strict=True)}
    dense = layer.whole(factors)
    as_stored = dense.T if is_transposed(f"{path}.{layer.kind.replaces}", family, ()) else dense
    return as_stored.astype(next(iter(stored.values())).dtype)


def dtype_of(source: Source) -> str:
    """What most numbers of a folder are stored as, as config.json calls it."""
    sizes: Counter[str] = Counter()
    for header in source.headers:
        sizes[header.dtype] += header.bytes
    return _NAMES.get(sizes.most_common(1)[0][0], "float32")


def _config(source: Source, dtype: str) -> dict[str, Any]:
    values, family = source.values, source.family
    head = named_head(values, family)
    architectures = values.get("architectures") or list(family.architectures.values())
    name = architectures[0] if head is None else family.architectures[head]
    return saved_config(values, name, {}) | {"dtype": dtype}


def _card(place: Path) -> str:
    """The card of the source, with what has changed said first and its way of use replaced."""
    card = card_of(place)
    card = re.sub(r"^library_name: .*$", "library_name: transformers", card, count=1, flags=re.M)
    card = re.sub(r"^## Use\n.*?(?=^## |\Z)", "", card, count=1, flags=re.M | re.S)
    return noted(
        card,
        "**Multiplied back**: this is an ordinary checkpoint. The factorized matrices described "
        "below are stored as their products, with zeros for dropped channels. Any tool that "
        "supports the architecture can load it, and it is neither smaller nor faster than the "
        "original model. The figures below were measured with the factors.",
    )
