"""A model as a pure function of flat dictionaries `{path: array}`.

Training, checkpoints, predicates and optimiser states all speak of parameters by path, and a step
over plain dictionaries costs half a millisecond of host time where module objects cost fifteen.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.models.layers import Draw, Fixed, Mask, MixedLinear, Quantized
from lpaf_jax.models.maps import attention_maps

Params = dict[str, Array]
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
Batch = Mapping[str, Any]


class Outputs(NamedTuple):
    """What a model gives where its hidden states are asked for.

    Attributes:
        logits: of its head.
        hidden: (layers + 1, batch, length, width): after the embeddings and after every layer.
        maps: log attention, (layers, batch, heads, queries, keys), where it is asked for.
    """

    logits: Array
    hidden: Array | None
    maps: Array | None = None


def inputs_of(batch: Batch) -> dict[str, Any]:
    """What of a batch a model is called with; labels and weights are not."""
    return {name: batch[name] for name in _INPUTS if name in batch}


def flatten(state: Any) -> Params:
    """The leaves of an NNX state by dotted path."""
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def parameters(model: nnx.Module) -> Params:
    """The trainable arrays of `model` by path, `bert.encoder.layer.0.output.dense.kernel`."""
    return flatten(nnx.state(model, nnx.Param))


def fixed_arrays(model: nnx.Module) -> Params:
    """What of `model` is never trained, by path: masks of mixed layers, and frozen parameters."""
    return flatten(nnx.state(model, Fixed))


def set_parameters(model: nnx.Module, params: Params) -> None:
    """Write `params` into `model`; paths that are not named keep what they hold.

    Raises:
        ValueError: an array has not the shape of the one it replaces.
    """
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name = ".".join(map(str, path))
        if name in params:
            if params[name].shape != leaf.shape:
                raise ValueError(f"{name}: {params[name].shape} does not fit {leaf.shape}")
            leaf.set_value(jnp.asarray(params[name], leaf.dtype))


def layer_at(model: nnx.Module, path: str) -> Any:
    """The layer at a dotted path; at the empty one, the model."""
    place: Any = model
    for name in filter(None, path.split(".")):
        place = place[int(name)] if name.isdigit() else getattr(place, name)
    return place


def replace_layer(model: nnx.Module, path: str, layer: nnx.Module) -> None:
    """Put `layer` where the layer at `path` stands."""
    parent, _, name = path.rpartition(".")
    setattr(layer_at(model, parent), name, layer)


def mixed_paths(model: nnx.Module) -> list[str]:
    """Paths of the mixed layers, in a fixed order: entry i of a draw belongs to layer i."""
    found = [
        ".".join(map(str, path))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, MixedLinear)
    ]
    return sorted(found)


Forward = Callable[..., Any]


def as_function(
    model: nnx.Module,
    *,
    hidden: bool = False,
    maps: bool = False,
    dtype: jnp.dtype | type | None = None,
) -> Forward:
    """`forward(params, fixed, batch, key=None, draws=None) -> logits`, pure in all arguments.

    `fixed` holds what `fixed_arrays(model)` does. `draws` holds one 0/1 number for each path of
    `mixed_paths(model)`; None takes the factors everywhere. Only the structure of `model` is kept,
    not its arrays. A batch holds `input_ids` and what else of a model's arguments it has.

    Args:
        hidden: return `Outputs`, the logits and the hidden states.
        maps: return `Outputs` with hidden states and attention.
        dtype: of activations and matrices, `jnp.bfloat16` for one: the matrices are cast on their
            way in, so gradients have the dtype of the parameters (float32 masters). Softmax and
            layer norms are computed, and outputs returned, in float32.
    """
    graphdef, state = nnx.split(model)
    abstract = jax.eval_shape(lambda: state)
    order = {f"{path}.draw": i for i, path in enumerate(mixed_paths(model))}

    def forward(
        params: Params,
        fixed: Params,
        batch: Batch,
        key: Array | None = None,
        draws: Array | None = None,
    ) -> Any:
        leaves = []
        for path, variable in nnx.to_flat_state(abstract):
            name = ".".join(map(str, path))
            if isinstance(variable, Draw):
                value = jnp.zeros(()) if draws is None else draws[order[name]]
            elif isinstance(variable, Mask):
                value = fixed[name]
            else:
                value = (fixed if isinstance(variable, Fixed) else params)[name]
                # Vectors are the biases and the weights of norms: too few to be worth rounding.
                wide = dtype is not None and not isinstance(variable, Quantized)
                value = value.astype(dtype) if wide and value.ndim > 1 else value
            leaves.append((path, variable.replace(value)))
        merged: Any = nnx.merge(graphdef, nnx.from_flat_state(leaves))
        inputs = inputs_of(batch)
        if not (hidden or maps):
            return merged(**inputs, key=key).astype(jnp.float32)
        looked: AbstractContextManager[list[Array]] = attention_maps() if maps else nullcontext([])
        with looked as found:
            logits, states = merged.with_hidden(**inputs, key=key)
        seen = jnp.stack(found) if maps else None
        return Outputs(logits.astype(jnp.float32), jnp.stack(states).astype(jnp.float32), seen)

    return forward
