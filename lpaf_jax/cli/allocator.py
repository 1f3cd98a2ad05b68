"""The allocator's settings, which glibc reads as a process begins.

JAX on a CPU page-faults some 700 MB of temporaries in every training step, because malloc hands
each large block back to the system. Kept, and in huge pages, they save 15 to 22 % of a step
(`benchmarks/train.py`).
"""

import os
import platform
import sys
from collections.abc import Mapping, Sequence

SETTINGS = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
# Commands that train, or cut matrix after matrix.
_LONG = ("compress", "compare", "intrinsic")


def begin_anew(words: Sequence[str]) -> None:
    """Start this process once more, with the settings in its environment, where they matter.

    That takes the 30 ms in which Python starts. Any of them that is set already is somebody's
    choice, and nothing is done; `MALLOC_MMAP_MAX_=65536` is glibc's own.
    """
    if not words or words[0] not in _LONG or not wanted(os.environ):
        return
    os.environ.update(SETTINGS)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the allocator is glibc's, and nothing is said of it."""
    return platform.libc_ver()[0] == "glibc" and not SETTINGS.keys() & environment.keys()
