"""Rows of W, I and A over eight devices: the same answer as on one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

DEVICES = 8
# Rows that eight devices share evenly; the first one is solved from a subspace iteration.
SHAPES = [(64, 48), (16, 40)]
RANK = 5

SCRIPT = """
import sys
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from lpaf_jax.linalg import (
    LowRank, balance, eliminate_channels, metric_svd, nearest_kronecker, randomized_svd, regressed,
    singular_values, svd, tensor_train, weighted_als, weighted_svd,
)

rank, path, axes = int(sys.argv[1]), sys.argv[2], sys.argv[3]
# Few sweeps: rounding alone sets two solves further and further apart.
als = partial(weighted_als, rank=rank, ridge=1e-3, tol=0.0, max_sweeps=10)
mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType[axes],))
by_rows = NamedSharding(mesh, PartitionSpec("rows"))
given = np.load(path)
results = {"devices": np.array(jax.device_count())}

def solve(w, i, init):
    f, info = als(w, i, init=init)
    return {
        "svd": svd(w, rank),
        "row": weighted_svd(w, i, rank, "row"),
        "separable": weighted_svd(w, i, rank, "separable"),
        "metric": metric_svd(w, rank, left=i.sum(axis=1)),
        "randomized": randomized_svd(w, rank, jax.random.key(0)),
        "als from separable": als(w, i)[0],
        "als": f,
        "balanced": balance(init),
        "kronecker": nearest_kronecker(w, ((8, 4), (len(w) // 8, w.shape[1] // 4)), 3),
        "train": tensor_train(w, ((2, 4, len(w) // 8), (2, 2, w.shape[1] // 4)), 3),
    }, info

for name in sorted({key.split("/")[0] for key in given}):
    w, i, a, b = (given[f"{name}/{part}"] for part in "wiab")
    w, i, a = (jax.device_put(x, by_rows) for x in (w, i, a))
    assert len(w.sharding.device_set) == jax.device_count()
    found, info = jax.jit(solve)(w, i, LowRank(a, jnp.asarray(b)))
    results |= {f"{name}/{method}": np.asarray(f.dense()) for method, f in found.items()}
    results[f"{name}/objective"] = np.asarray(info.objective[-1])
    results[f"{name}/singular values"] = np.asarray(singular_values(w))
    inputs = np.asarray(i)
    second, cross = (jnp.asarray(inputs @ x.T) for x in (inputs, inputs + np.asarray(w)))
    results[f"{name}/regressed"] = np.asarray(regressed(w, second, cross))
    gone = eliminate_channels(w, second, block=4)
    results[f"{name}/order of channels"] = np.asarray(gone.order)
    results[f"{name}/what channels are worth"] = np.asarray(gone.errors)
    results[f"{name}/als outside of jit"] = np.asarray(als(w, i)[0].dense())
    if jax.device_count() > 1:
        # Factors stay where the rows are, and are no copy on every device.
        assert found["als"].a.sharding.is_equivalent_to(by_rows, 2), found["als"].a.sharding
np.savez(path, **results)
"""


def solved(
    path: Path, problems: dict[str, np.ndarray], devices: int, axes: str
) -> dict[str, np.ndarray]:
    np.savez(path, **problems)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(RANK), path, axes],
        env=os.environ
        | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return dict(np.load(path))


def names(shapes: list[tuple[int, int]]) -> tuple[str, ...]:
    return tuple(f"{m}x{n}/" for m, n in shapes)


@pytest.mark.slow
def test_sharded_rows_give_the_answer_of_one_device(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    problems = {}
    for m, n in SHAPES:
        arrays = rng.normal(size=(m, n)), np.exp(1.5 * rng.normal(size=(m, n)))
        factors = rng.normal(size=(m, RANK)), rng.normal(size=(RANK, n))
        problems |= {
            f"{m}x{n}/{part}": x for part, x in zip("wiab", (*arrays, *factors), strict=True)
        }
    one = solved(tmp_path / "one.npz", problems, 1, "Auto")
    assert one.pop("devices") == 1
    assert len(one) == 16 * len(SHAPES)
    for axes, shapes in (("Auto", SHAPES), ("Explicit", SHAPES[1:])):
        ours = {name: x for name, x in problems.items() if name.startswith(names(shapes))}
        many = solved(tmp_path / f"{axes}.npz", ours, DEVICES, axes)
        assert many.pop("devices") == DEVICES
        assert many.keys() == {name for name in one if name.startswith(names(shapes))}
        for name, dense in many.items():
            assert dense == pytest.approx(one[name], rel=1e-6, abs=1e-6), (axes, name)
