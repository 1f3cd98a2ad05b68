"""The weighted solvers alone: what each knows of a matrix, and what that is worth.

python examples/solver.py
"""

import jax
import jax.numpy as jnp

from lpaf_jax.linalg import LowRank, Status, metric_svd, svd, weighted_als, weighted_svd

RANK = 16


def main() -> None:
    of_w, of_x, of_i = jax.random.split(jax.random.key(0), 3)
    w = jax.random.normal(of_w, (96, 192))
    x = jax.random.normal(of_x, (2000, 96)) * jnp.geomspace(1, 100, 96)  # inputs, of 96 scales
    importance = jnp.exp(2 * jax.random.normal(of_i, w.shape))

    def output_error(f: LowRank) -> float:
        return float(jnp.linalg.norm(x @ w - f.apply(x)) / jnp.linalg.norm(x @ w))

    def weighted_error(f: LowRank) -> float:
        return float(jnp.sum(importance * jnp.square(w - f.dense())))

    plain, aware = svd(w, RANK), metric_svd(w, RANK, left=x.T @ x / len(x))
    print(
        f"outputs are off by {output_error(plain):.3f}, aware of inputs {output_error(aware):.3f}"
    )

    rows = weighted_svd(w, importance, RANK, sharing="row")
    exact, info = weighted_als(w, importance, RANK)
    print(f"weighted error {weighted_error(rows):.0f} by rows, {weighted_error(exact):.0f} exact")
    print(f"{Status(int(info.status)).words} after {int(info.sweeps)} sweeps")

    stack = jnp.stack([w, 2 * w, w + 1])  # many matrices of one shape, in one program
    factors = jax.jit(jax.vmap(lambda each: svd(each, RANK)))(stack)
    print(factors.a.shape, factors.b.shape)


if __name__ == "__main__":
    main()
