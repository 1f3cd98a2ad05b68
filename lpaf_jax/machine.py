"""What figures were measured on: cores, memory, versions."""

import importlib.metadata
import os
import platform
import resource
import sys

import jax


def usable_cpus() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory() -> int:
    """The most bytes that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB on Linux


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
