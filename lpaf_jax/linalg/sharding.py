"""Solving matrices that lie on a mesh with explicit axes, which jax makes by default.

On such a mesh the sharding of every result must follow from the operation, and LAPACK takes no
sharded matrix at all. Inside a solve the compiler decides, as it does where axes are automatic.
"""

from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes
from jaxtyping import Array

Result = TypeVar("Result")
Inputs = TypeVarTuple("Inputs")


def axis_specs(x: Array) -> tuple[PartitionSpec, PartitionSpec]:
    """How to shard a matrix with the rows of x, and one with its columns."""
    rows, columns = jax.typeof(x).sharding.spec
    return PartitionSpec(rows, None), PartitionSpec(None, columns)


def on_mesh(solve: Callable[[*Inputs], Result], *inputs: *Inputs, out: Any) -> Result:
    """`solve(*inputs)`; if an input lies on a mesh, results are sharded by the specs in `out`.

    `out` is a prefix of the result; PartitionSpec() is all of an array on every device.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(inputs)]
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return solve(*inputs)
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), out)
    return auto_axes(solve, out_sharding=placed)(*inputs)
