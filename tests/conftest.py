"""Settings that must stand before jax and its BLAS are loaded; who of two workers does what."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# OpenBLAS threads wait by spinning: on cores that are busy, a small SVD takes 30 times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Arrays and models this small wait for the compiler alone, here and in processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from collections.abc import Iterator
from typing import Any

import jax
import pytest

pytest_plugins = ["tests.tiny", "tests.tiny_tasks"]

# Files that take the same whole runs: one worker has them all, and begins with them.
_SAME_RUNS = ("tests/tasks/test_kinds.py", "tests/evaluation/test_serve_kinds.py")


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Many tests compile the same programs: each worker keeps its own, for this session.

    Entries are not written at one stroke, so a folder has one writer. Processes that tests start,
    and may kill, only read.
    """
    folder = str(tmp_path_factory.mktemp("compiled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1e9")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        yield


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
