"""Many problems of one shape on many devices, each solved on one of them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpaf_jax.core.processes import on_host

Solution = TypeVar("Solution")


def solve_each(solve: Callable[[Any], Solution], problems: Sequence[Any]) -> list[Solution]:
    """`[solve(p) for p in problems]`: one compiled call, spread over the devices of all processes.

    Every device solves its share one after the other. Nothing is exchanged meanwhile, so a solver
    may take as many steps as its matrix needs; and nothing is solved everywhere, as it would be
    were the stack merely sharded: no compiler can cut a call of LAPACK, so each device would
    gather all matrices and solve them all.

    With several processes each of them gives all problems and gets all solutions.

    Args:
        solve: from a tree of arrays to one, jittable.
        problems: trees of one structure and of the same shapes, of arrays that are not spread
            over processes (`lpaf_jax.core.processes.on_host` gathers those that are).

    Returns:
        the solutions, where jax puts new arrays.

    Cost: the time of `ceil(problems / devices)` of them; each device holds its share as a stack.
    """
    devices = jax.devices()
    parts = min(len(devices), len(problems)) if jax.process_count() == 1 else len(devices)
    size = -(-len(problems) // parts)

    def solve_share(stack: Any) -> Any:
        # One after the other: on a CPU a batched product runs on one thread, and a batched SVD
        # takes its matrices one by one anyway.
        return jax.lax.map(solve, stack)

    def share(part: int) -> Any:
        # Shares are of one size: what is missing at the end is the beginning once more.
        taken = [problems[i % len(problems)] for i in range(part * size, (part + 1) * size)]
        return jax.tree.map(lambda *each: jnp.stack(each), *taken)

    if parts == 1:
        solved = jax.jit(solve_share)(share(0))
    else:
        mesh, cut = Mesh(np.array(devices[:parts]), ("problems",)), PartitionSpec("problems")
        spread = jax.shard_map(solve_share, mesh=mesh, in_specs=cut, out_specs=cut)
        shares = [
            jax.device_put(share(part), device)
            for part, device in enumerate(mesh.devices)
            if device.process_index == jax.process_index()
        ]

        def stack(*each: Array) -> Array:
            shape = (parts * size, *each[0].shape[1:])
            whole = NamedSharding(mesh, cut)
            return jax.make_array_from_single_device_arrays(shape, whole, list(each))

        found = on_host(jax.jit(spread)(jax.tree.map(stack, *shares)))
        solved = jax.tree.map(jnp.asarray, found)
    return [jax.tree.map(lambda x, i=i: x[i], solved) for i in range(len(problems))]
