r"""Factorize a stack of matrices on all devices, and compress a model on them.

python examples/several_devices.py                         # the devices that JAX finds
XLA_FLAGS=--xla_force_host_platform_device_count=4 python examples/several_devices.py   # on a CPU
"""

import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import lpaf_jax
from lpaf_jax.linalg import svd


def main(
    model: str = "minilm", task: str = "rotten_tomatoes", out: str = "runs/devices", batch: int = 64
) -> None:
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("device",))
    stack = jax.random.normal(jax.random.key(0), (2 * count, 96, 192))
    # Two matrices on each device: the solvers need no other call than on one.
    spread = jax.device_put(stack, NamedSharding(mesh, PartitionSpec("device")))
    factors = jax.jit(jax.vmap(lambda w: svd(w, 16)))(spread)
    error = jnp.linalg.norm(factors.dense() - stack) / jnp.linalg.norm(stack)
    print(f"{len(stack)} matrices on {len(factors.a.sharding.device_set)} devices: {error:.3f} off")

    # Batches are split over all devices; with fsdp the state of the training is, too.
    metrics = lpaf_jax.compress(
        model, task=task, out=out, preset="quick", batch=batch, fsdp=count, length=32
    )
    final = metrics["stages"]["final"]["accuracy"]
    print(f"accuracy {metrics['stages']['dense']['accuracy']:.1%}, compressed {final:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
