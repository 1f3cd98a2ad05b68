"""Several processes that make one run together: all compute, the first one writes."""

import os
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from lpaf_jax.core.errors import LpafError

_COUNT, _INDEX = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Become one of several processes, once, before any array is made.

    Cloud TPUs, Slurm, Open MPI and Kubernetes tell JAX all it needs; elsewhere the environment
    does: JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID.

    Raises:
        LpafError: nothing tells how many processes there are, a variable is no number, or they do
            not find each other.
    """
    if are_several():
        return
    count, index = _number(_COUNT), _number(_INDEX)
    try:
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:
        raise LpafError(
            f"--distributed: the processes cannot join ({error}); outside a cluster that JAX "
            f"knows, set JAX_COORDINATOR_ADDRESS, {_COUNT} and {_INDEX} for each of them"
        ) from error


def _number(variable: str) -> int | None:
    value = os.environ.get(variable)
    try:
        return int(value) if value else None
    except ValueError as error:
        raise LpafError(
            f"--distributed: {variable} is {value!r}, but must be a whole number"
        ) from error


def are_several() -> bool:
    """Whether this is one of several processes that have joined."""
    return bool(jax.distributed.is_initialized())


def is_first() -> bool:
    """Whether this process is the one that writes; without others it is."""
    return not are_several() or jax.process_index() == 0


def barrier(where: str) -> None:
    """Wait until all processes are here, so that each sees what the first has written."""
    if are_several():
        multihost_utils.sync_global_devices(where)


def well_everywhere(here: bool) -> bool:
    """Whether all went well on every process; each of them asks."""
    if not are_several():
        return here
    return bool(multihost_utils.process_allgather(np.int32(here)).all())


def on_host(tree: Any) -> Any:
    """The whole of every array as numpy, on every process."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, Array) and not x.is_fully_addressable:
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(whole, tree)
