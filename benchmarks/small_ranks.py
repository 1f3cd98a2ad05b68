"""Small ranks: two conjugate-gradient steps a half-sweep against solving each row's system exactly.

```
python benchmarks/small_ranks.py runs/quick
```

Both run inside `weighted_als`: the same start, extrapolation and guard. The exact half-sweep forms
all Gram matrices in one product, `I (B ⊙ B)ᵀ` with the k (k + 1) / 2 products of the rows of B, and
factorizes them all at once, entry by entry of the k × k pattern, over vectors of all rows: batched
LAPACK calls take three times as long at these sizes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from provenance import provenance

from linalg import REAL, SHARES, median_seconds, real_importance, sweeps_to
from lpaf_jax.core.files import write_json
from lpaf_jax.linalg import LowRank, als
from lpaf_jax.linalg.factors import matmul, ratio

RESULTS = Path(__file__).parent / "results" / "small_ranks.json"
RANKS = (2, 4, 8, 16)
SWEEPS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    matrices = real_importance(parser.parse_args().run)
    by_cg = als._sweep
    rows = []
    for shape in REAL:
        for kind in ("fisher", "score"):
            w, i = (jnp.asarray(matrices[f"{shape}/{kind}/{part}"], jnp.float32) for part in "wi")
            for rank in RANKS:
                both = {"cg": by_cg, "exact": exact_sweep}
                row = compare(w, i, rank, both)
                rows.append({"problem": f"{kind} {shape} k={rank}", **row})
                print(rows[-1], flush=True)
                write_json(RESULTS, provenance() | {"share": SHARES[-1], "problems": rows})
    ratios = [row["exact"]["ms"] / row["cg"]["ms"] for row in rows if _both(row)]
    print(
        f"exact over CG, time: {min(ratios):.2f} to {max(ratios):.2f}, "
        f"median {np.median(ratios):.2f}, of {len(ratios)}"
    )


def _both(row: dict) -> bool:
    return all(row[name]["ms"] is not None for name in ("cg", "exact"))


def compare(w: Array, i: Array, rank: int, ways: dict[str, Callable]) -> dict:
    """Sweeps and milliseconds to within 0.1 % of the better of the two."""

    def solve(name: str, sweeps: int) -> als.AlsInfo:
        als._sweep = ways[name]
        return als.weighted_als(w, i, rank, max_sweeps=sweeps, tol=0.0)[1]

    traces = {}
    for name in ways:
        jax.clear_caches()
        traces[name] = np.asarray(solve(name, SWEEPS).objective)
    best = min(float(trace.min()) for trace in traces.values())
    found = {}
    for name, trace in traces.items():
        sweeps = sweeps_to(trace, best, SHARES[-1])
        jax.clear_caches()
        seconds = sweeps and median_seconds(lambda n=name, s=sweeps: solve(n, s))
        found[name] = {"sweeps": sweeps, "ms": seconds and round(1e3 * seconds, 1)}
    return found


def exact_sweep(
    w: Array, weight: als._Weight, ridge: Array, f: LowRank
) -> tuple[LowRank, Array, Array]:
    """What `als._sweep` does, with every row's and every column's system solved."""
    i = weight.importance
    a, error, gain_a = _half(f.a.T, weight.error(w, f).T, i.T, weight.root, ridge, f.b)
    b, error, gain_b = _half(f.b, error.T, i, weight.root, ridge, a)
    new = LowRank(a.T, b)
    objective = als._objective(weight, ridge, new, error)
    return new, objective, jnp.sqrt(ratio(gain_a + gain_b, objective))


def _half(
    x: Array, error: Array, importance: Array, root: Array, ridge: Array, other: Array
) -> tuple[Array, Array, Array]:
    """One system for each column of x (k, n); error and importance (m, n), other (k, m)."""
    k = len(x)
    i, j = np.triu_indices(k)
    place = np.zeros((k, k), int)
    place[i, j] = place[j, i] = np.arange(len(i))
    gram = matmul(root * other[i] * other[j], importance * root)[place]
    # Relative to each diagonal entry, at rounding level: the correction is solved for, so it
    # moves no fixed point.
    diagonal = jnp.diagonal(gram).T + ridge
    safe = jnp.where(diagonal > 0, diagonal, 1) * (1 + 100 * jnp.finfo(x.dtype).eps)
    gram = jnp.where(jnp.eye(k, dtype=bool)[..., None], safe[:, None], gram)
    residual = root * matmul(other, importance * error) - ridge * x
    step = _solve_all(gram, residual)
    return x + step, error - root * matmul(other.T, step), jnp.sum(residual * step)


def _solve_all(gram: Array, right: Array) -> Array:
    """Gaussian elimination without pivots of n SPD systems, (k, k, n) and (k, n)."""
    upper = []
    for _ in range(len(gram)):
        factor = gram[1:, 0] / gram[0, 0]
        upper.append((gram[0], right[0]))
        right = right[1:] - factor * right[0]
        gram = gram[1:, 1:] - factor[:, None] * gram[0, 1:]
    found: list[Array] = []
    for row, value in reversed(upper):
        known = sum((c * x for c, x in zip(row[1:], found, strict=True)), jnp.zeros_like(value))
        found.insert(0, (value - known) / row[0])
    return jnp.stack(found)


if __name__ == "__main__":
    main()
