"""What a sweep of the exact solver costs against m, n and k, in time and memory.

`benchmarks/linalg.py` runs this, and each large case in a process of its own, so that the peak
memory is that of the case alone:

    python benchmarks/linalg_scaling.py 4096 11008 256
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from lpaf_jax.linalg import LowRank, weighted_als

LARGE = ((4096, 11008, 256), (4096, 11008, 1024))
# One size is varied at a time, the others are as in the first.
SIZES = [(1024, 1024, 128)]
SIZES += [(m, 1024, 128) for m in (512, 2048, 4096)]
SIZES += [(1024, n, 128) for n in (512, 2048, 4096)]
SIZES += [(1024, 1024, k) for k in (32, 64, 256, 512)]


def scaling() -> dict[str, Any]:
    """Times of a sweep, the powers of m, n and k in them, and the large cases."""
    sweeps = []
    for m, n, k in SIZES:
        few, many = (seconds(m, n, k, count) for count in (2, 12))
        sweeps.append({"m": m, "n": n, "k": k, "seconds": (many - few) / 10})
        print(_line(sweeps[-1]), flush=True)
    sizes = np.log([[row["m"], row["n"], row["k"]] for row in sweeps])
    table = np.column_stack([sizes, np.ones(len(sizes))])
    times = np.log([row["seconds"] for row in sweeps])
    powers = np.linalg.lstsq(table, times, rcond=None)[0]
    large = []
    for case in LARGE:
        command = [sys.executable, __file__, *map(str, case)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        large.append(json.loads(run.stdout))
        print(_line(large[-1]), flush=True)
    return {
        "sweeps": sweeps,
        "powers": dict(zip("mnk", map(float, powers[:3]), strict=True)),
        "large": large,
    }


def _line(row: dict[str, Any]) -> str:
    rate = 18 * row["m"] * row["n"] * row["k"] / row["seconds"] / 1e9
    text = f"{row['m']} x {row['n']}, k = {row['k']}: {row['seconds'] * 1e3:.1f} ms a sweep"
    memory = f", peak {row['copies']:.1f} copies of W" if "copies" in row else ""
    return f"{text} ({rate:.0f} GFLOP/s){memory}"


def seconds(m: int, n: int, k: int, sweeps: int) -> float:
    """Median time of a solve of so many sweeps from a random start."""
    problem, start = _problem(m, n), _start(m, n, k)
    times = [_once(*problem, k, start, sweeps) for _ in range(4)]
    return float(np.median(times[1:]))


def large(m: int, n: int, k: int) -> dict[str, Any]:
    """Seconds of one more sweep, and the peak memory in copies of W, inputs and start included."""
    _once(*_problem(16, 16), 2, None, 1)  # the compiler and the thread pools have their memory
    before = _memory_now()
    problem = _problem(m, n)
    whole = _once(*problem, k, None, 1)
    peak = _memory() - before
    one, two = (min(_once(*problem, k, None, count) for _ in range(2)) for count in (1, 2))
    sizes = {"m": m, "n": n, "k": k}
    times = {"seconds": two - one, "seconds_of_start_and_sweep": one, "first_call": whole}
    return sizes | times | {"copies": peak / (4 * m * n), "peak_bytes": peak}


def _problem(m: int, n: int) -> tuple[Array, Array]:
    random = np.random.default_rng(0)
    w, weight = (random.standard_normal((m, n), np.float32) for _ in range(2))
    np.exp(weight, out=weight)
    return jax.device_put(w), jax.device_put(weight)


def _start(m: int, n: int, k: int) -> LowRank:
    random = np.random.default_rng(1)
    return LowRank(
        *(jax.device_put(random.standard_normal(s, np.float32)) for s in ((m, k), (k, n)))
    )


def _once(w: Array, weight: Array, rank: int, init: LowRank | None, sweeps: int) -> float:
    started = time.perf_counter()
    jax.block_until_ready(weighted_als(w, weight, rank, init=init, max_sweeps=sweeps, tol=0.0))
    return time.perf_counter() - started


def _memory_now() -> int:
    """Memory of the process, or of the device where it counts its own."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_in_use" in stats:
        return int(stats["bytes_in_use"])
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() if pages.is_file() else 0


def _memory() -> int:
    """Peak memory so far: of the device where it counts it, else of the process."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for size in "mnk":
        parser.add_argument(size, type=int)
    given = parser.parse_args()
    print(json.dumps(large(given.m, given.n, given.k)))
