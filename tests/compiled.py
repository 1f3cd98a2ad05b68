"""What tests compile, shared between workers and kept for the next session.

Many tests compile the same programs, and wait for that most of their time. JAX does not write an
entry of its cache at one stroke, so that each worker has a folder of its own. Between files it
gives what it has compiled to the others, and takes what they have.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import jax
import pytest

# To emit fusions one by one is more than half of the compiler's work on arrays this small. It reads
# its flags when the first array is made, and one that it does not know ends the process: these
# versions, which are pinned, know this one.
_FLAG, _FLAGS = "--xla_cpu_use_fusion_emitters=false", os.environ.get("XLA_FLAGS", "")
if version("jaxlib").startswith(("0.10.", "0.12.")) and _FLAG not in _FLAGS:
    os.environ["XLA_FLAGS"] = f"{_FLAG} {_FLAGS}"

# What is kept, in bytes, before all of it is thrown away: programs change with the code.
_MOST = 500 * 2**20
# Memory of a worker above which it lets go of what it has compiled.
_HELD = 2 * 2**30


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where nothing says so."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Exchange:
    """A folder of whole entries, and one that this worker writes."""

    def __init__(self, shared: Path, own: Path):
        self._shared, self._own, self._file = shared, own, ""

    def between_files(self, file: str) -> None:
        if file == self._file:
            return
        self._file = file
        self.now()
        if _resident() > _HELD:
            jax.clear_caches()  # what is wanted again is read from the disk

    def now(self) -> None:
        self._shared.mkdir(parents=True, exist_ok=True)
        ours, theirs = (
            {entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")}
            for folder in (self._own, self._shared)
        )
        for name in ours - theirs:
            part = self._shared / f".{os.getpid()}"
            shutil.copyfile(self._own / name, part)
            part.replace(self._shared / name)
        for name in theirs - ours:
            with suppress(FileNotFoundError):  # another session has thrown it away
                shutil.copyfile(self._shared / name, self._own / name)


_KEY = pytest.StashKey[Exchange]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    kept = _kept(session.config)
    if kept is not None and sum(entry.stat().st_size for entry in os.scandir(kept)) > _MOST:
        shutil.rmtree(kept)


def _kept(config: pytest.Config) -> Path | None:
    """What is kept from session to session; nothing where pytest is told to keep nothing."""
    cache = getattr(config, "cache", None)
    return None if cache is None else cache.mkdir("compiled")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    exchange = item.config.stash.get(_KEY, None)
    if exchange is not None:
        exchange.between_files(str(item.path))


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[None]:
    """Processes that tests start, and may kill, read what there is and write nothing."""
    own = tmp_path_factory.mktemp("compiled")
    kept = _kept(pytestconfig)
    exchange = pytestconfig.stash[_KEY] = Exchange(own if kept is None else kept, own)
    exchange.now()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(own))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1e9")
        # They would put the path of the folder into the name of every entry.
        patch.setenv("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
        jax.config.update("jax_compilation_cache_dir", str(own))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
        yield
    exchange.now()
