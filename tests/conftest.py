"""Settings that must stand before jax and its BLAS are loaded; who of two workers does what."""

import os
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
# OpenBLAS threads wait by spinning: on cores that are busy, a small SVD takes 30 times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Arrays and models this small wait for the compiler alone, here and in processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# To emit fusions one by one is more than half of that wait. A version that does not know a flag
# ends the process: these know it.
_FLAG, _FLAGS = "--xla_cpu_use_fusion_emitters=false", os.environ.get("XLA_FLAGS", "")
if version("jaxlib").startswith(("0.10.", "0.11.", "0.12.")) and _FLAG not in _FLAGS:
    os.environ["XLA_FLAGS"] = f"{_FLAG} {_FLAGS}"

from typing import Any

import pytest

pytest_plugins = ["tests.compiled", "tests.tiny", "tests.tiny_tasks"]

# Files that take the same whole runs: one worker has them all, and begins with them.
_SAME_RUNS = ("tests/tasks/test_kinds.py", "tests/evaluation/test_serve_kinds.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(_SAME_RUNS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        """Tests of a file share what they set up, and some files do with others."""

        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return _SAME_RUNS[0] if file in _SAME_RUNS else file

    config.option.loadscopereorder = False  # in the order above, not by the number of tests
    return ByFile(config, log)
