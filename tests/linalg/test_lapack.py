import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from lpaf_jax.linalg import balance, singular_values, svd
from lpaf_jax.linalg.lapack import eigh, qr, thin_svd

SCRIPT = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp
from lpaf_jax.linalg import LowRank, balance, metric_svd, singular_values, svd

@jax.jit
def at_once(a, b):
    pair, stack = LowRank(a[0], b[0]), jax.vmap(lambda a, b: balance(LowRank(a, b)))
    each = jax.vmap(lambda w: svd(w, 2))
    outputs = jax.vmap(lambda w: metric_svd(w, 2, right=w.T @ w))
    plain = stack(a, b), stack(2 * a, b), each(a), each(b), singular_values(a)
    return balance(pair), plain, outputs(a), outputs(2 * a)

for _ in range(5):
    jax.block_until_ready(at_once(jnp.ones((24, 384, 32)), jnp.ones((24, 32, 384))))
print("done")
"""


def test_stacks_at_once_do_not_lock_up_two_threads() -> None:
    # In a process of its own: a lock-up would hang the tests instead of failing one.
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert run.stdout == "done\n", run.stderr


def test_stacks_equal_numpy(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(singular_values(x), np.linalg.svd(x)[1], rtol=1e-4)
    q, r = jax.jit(jax.vmap(qr))(x[0])
    np.testing.assert_allclose(q @ r, x[0], atol=1e-5)
    u, s, vt = jax.jit(jax.vmap(thin_svd))(x[0])
    np.testing.assert_allclose((u * s[:, None]) @ vt, x[0], atol=1e-5)
    square = x[0, :, :4]
    s, q = jax.jit(jax.vmap(eigh))(square)
    symmetric = (square + square.swapaxes(1, 2)) / 2
    np.testing.assert_allclose(s, np.linalg.eigvalsh(symmetric), atol=1e-5)
    np.testing.assert_allclose((q * s[:, None]) @ q.swapaxes(1, 2), symmetric, atol=1e-5)


def test_derivatives_of_stacks(rng: np.random.Generator) -> None:
    """Each matrix of a stack has the derivative that it has alone."""
    x = rng.normal(size=(3, 5, 4)).astype(np.float32)

    def loss(w: jax.Array) -> jax.Array:
        return jnp.sum(balance(svd(w, 2)).dense() ** 3)

    gradients = jax.jit(jax.vmap(jax.grad(loss)))(x)
    alone = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(gradients, [np.asarray(alone(w)) for w in x], atol=1e-4)
