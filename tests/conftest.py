"""Settings that must stand before jax and its BLAS are loaded; who of two workers does what."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# OpenBLAS threads wait by spinning: on cores that are busy, a small SVD takes 30 times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Arrays and models this small wait for the compiler alone, here and in processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

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
