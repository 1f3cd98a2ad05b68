"""What figures are measured on."""

import subprocess
import sys

import numpy as np

from lpaf_jax.core.machine import peak_memory


def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    held = np.ones(2**27)  # 1 GiB
    assert peak_memory() > held.nbytes
    code = "from lpaf_jax.core.machine import peak_memory; print(peak_memory())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 0 < int(told.stdout) < held.nbytes
