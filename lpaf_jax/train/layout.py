"""How training is spread over devices: batches by rows, states by their largest axis.

```python
layout = make_layout(fsdp=4)  # 8 devices: 2 groups of 4, the parameters cut in 4
state = initial_state(params, optimizer, layout)
step = make_step(loss, optimizer, layout=layout)
state, logged = step(state, {}, layout.batch(batch), key)
```

Nothing else changes: XLA splits the work and adds the exchanges. With several processes, each of
them runs the same program over the same `layout`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lpaf_jax.core.errors import LpafError

DATA, FSDP = "data", "fsdp"
# Arrays smaller than this are held whole on every device: to gather them costs more than it saves.
_SMALL = 2**12


class Layout(NamedTuple):
    """A mesh of axes `data` and `fsdp`.

    A batch is cut over both axes. Parameters, the state of the optimiser, scores and masks are cut
    over `fsdp` along the largest axis it divides, and copied over `data`.

    Attributes:
        mesh: of all devices of all processes.
        small: arrays of fewer numbers are held whole everywhere.
    """

    mesh: Mesh
    small: int = _SMALL

    def of(self, tree: Any) -> Any:
        """The sharding of each array of a tree, from shapes alone."""
        return jax.tree.map(lambda x: NamedSharding(self.mesh, self._spec(x.shape)), tree)

    def place(self, tree: Any) -> Any:
        """The tree on the devices; every process gives the whole of it."""
        return jax.tree.map(self._put, tree, self.of(tree))

    def batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """A batch, cut by rows; every process gives the whole of it and keeps its own rows.

        Raises:
            LpafError: the devices do not divide the rows.
        """
        rows = len(batch["weight"])
        if rows % self.mesh.size:
            raise LpafError(
                f"a batch of {rows} cannot be spread over {self.mesh.size} devices: "
                "make it a multiple of their number"
            )
        cut = NamedSharding(self.mesh, PartitionSpec((DATA, FSDP)))
        return {name: self._put(x, cut) for name, x in batch.items()}

    def _put(self, x: Any, sharding: NamedSharding) -> Any:
        if jax.process_count() == 1:
            # device_put may alias what it is given, and a donated state must own its memory.
            return jax.device_put(x, sharding, may_alias=False)
        if isinstance(x, Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    def _spec(self, shape: Sequence[int]) -> PartitionSpec:
        parts = self.mesh.shape[FSDP]
        fitting = [(size, -axis) for axis, size in enumerate(shape) if size % parts == 0]
        if parts == 1 or math.prod(shape) < self.small or not fitting:
            return PartitionSpec()
        axis = -max(fitting)[1]
        # As jit writes it, so that a state that comes back from a step is the one that went in.
        return PartitionSpec(*[None] * axis, FSDP)


def make_layout(
    fsdp: int = 1, devices: Sequence[jax.Device] | None = None, small: int = _SMALL
) -> Layout:
    """A layout over all devices, of all processes.

    Args:
        fsdp: devices that share one copy of the state; 1 is plain data parallelism.
        devices: all of them where None.
        small: see `Layout`.

    Raises:
        LpafError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise LpafError(
            f"fsdp is {fsdp}, which does not divide the number of devices: "
            f"choose a divisor of {len(devices)}"
        )
    # Automatic axes: under explicit ones an embedding's gather from a sharded table raises.
    mesh = jax.make_mesh(
        (len(devices) // fsdp, fsdp), (DATA, FSDP), (AxisType.Auto,) * 2, devices=devices
    )
    return Layout(mesh, small)
