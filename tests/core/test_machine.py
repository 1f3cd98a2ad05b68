"""What figures are measured on."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from lpaf_jax.cli.allocator import SETTINGS
from lpaf_jax.core.machine import peak_memory

# One kept block lies above those that are freed, as among the many of a run.
_FREED = """
import numpy as np
from lpaf_jax.core.machine import forget_peak_memory, peak_memory
blocks = [np.ones(2**20) for _ in range(60)]
kept = blocks.pop()
del blocks
before = peak_memory()
forget_peak_memory()
print(before - peak_memory())
"""


def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    held = np.ones(2**27)  # 1 GiB
    assert peak_memory() > held.nbytes
    code = "from lpaf_jax.core.machine import peak_memory; print(peak_memory())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 0 < int(told.stdout) < held.nbytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_what_was_freed_before_does_not_count() -> None:
    """Also where freed memory is kept for what comes, as the command has it."""
    words = [sys.executable, "-c", _FREED]
    told = subprocess.run(words, capture_output=True, check=True, env=os.environ | SETTINGS)
    assert int(told.stdout) > 0.8 * 59 * 2**23
