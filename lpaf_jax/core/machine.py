"""What figures were measured on: cores, memory, versions."""

import ctypes
import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax


def usable_cpus() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory() -> int:
    """The most bytes that this process has held."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux getrusage counts what the process held that started this one
        lines = status.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere


def versions() -> dict[str, str]:
    """Of Python, of the packages that figures depend on, and the backend."""
    names = ["lpaf-jax", "jax", "jaxlib", "flax", "optax", "numpy", "safetensors"]
    names += ["tokenizers", "transformers", "datasets"]
    found = {"python": platform.python_version(), "backend": jax.default_backend()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
            found[name] = "not installed"
    return found


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let OpenBLAS, which jax calls for SVD and eigenvalues on a CPU, use one thread.

    XLA has threads of its own, and those of OpenBLAS wait by spinning: on cores that are busy an
    eigendecomposition of 1536 × 1536 was seen to take 30 s in place of 0.3 s. On quiet ones a
    second thread gains nothing there.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def forget_peak_memory() -> None:
    """Let `peak_memory` count from now on, and only what is in use, where the system can."""
    # What was freed is kept for later (`lpaf_jax.cli.allocator`), and would count as held.
    with suppress(OSError, AttributeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # Linux alone has it, and a container may forbid it
        Path("/proc/self/clear_refs").write_text("5")
