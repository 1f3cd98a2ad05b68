"""Files that are either whole or absent: written beside their place, then renamed into it."""

import fcntl
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lpaf_jax.core.errors import LpafError

# What a clone without git-lfs has in the place of a file.
LFS_POINTER = b"version https://git-lfs"
# safetensors reports a full disk as an error of its own, which is no OSError.
_WRITE_ERRORS = (OSError, SafetensorError)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`.

    On any error the temporary file is removed and what stood at `path` is untouched.

    Raises:
        LpafError: the disk is full or the folder cannot be written.
    """
    temporary = _hidden(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path)
        yield temporary
        os.replace(temporary, path)
    except _WRITE_ERRORS as error:
        raise _cannot_write(path, temporary, error) from error
    finally:
        _remove(temporary)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it takes the place of `path`.

    A folder cannot be swapped for another in one step everywhere, so the old one is moved aside
    first and removed last: at every moment one whole copy exists, and if the process is killed
    between the two moves, the next call brings the old one back before anything else.

    Raises:
        LpafError: the disk is full, the folder cannot be written, or `path` is a file.
    """
    temporary, old = _hidden(path, "tmp"), _hidden(path, "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path)
        if path.exists() and not path.is_dir():
            raise LpafError(
                f"{path} is a file, but a folder is to be written there; move the file away"
            )
        temporary.mkdir()
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except _WRITE_ERRORS as error:
        raise _cannot_write(path, temporary, error) from error
    finally:
        # Not in `except`: an interrupt between the two moves must not cost the old folder.
        if old.exists() and not path.exists():
            os.replace(old, path)
        _remove(temporary)
        _remove(old)


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON. Numbers that are not finite, for which JSON has no word, are null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; `path` holds the old or the new text, never a part."""
    with atomic_write(path) as temporary:
        temporary.write_text(json_text(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        LpafError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LpafError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise LpafError(f"{path} cannot be read as JSON: {error}") from error


def link(source: str | Path, target: str | Path) -> None:
    """Let `target` be the same file as `source`, or a copy where the disk has no links.

    Files are never written in place here, so that neither changes with the other.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds `path`, or will hold it once it is made."""
    place = path.absolute()
    while not place.is_dir():
        place = place.parent
    return shutil.disk_usage(place).free


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hidden(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def _clear_leftovers(path: Path) -> None:
    """Undo what killed processes left beside `path`; those still running keep theirs."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.(tmp|old)")
    for left in list(path.parent.iterdir()):
        match = name.fullmatch(left.name)
        if match and not _another_process(int(match[1])):
            if match[2] == "old" and not path.exists():
                os.replace(left, path)
            else:
                _remove(left)


def _another_process(pid: int) -> bool:
    if pid == os.getpid():  # numbers come back, in a container nearly always the same one
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, under another user
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _cannot_write(path: Path, temporary: Path, error: Exception) -> LpafError:
    reason = str(error)
    if isinstance(error, OSError) and error.strerror:
        elsewhere = error.filename and not str(error.filename).startswith(str(temporary))
        reason = error.strerror + (f" ({error.filename})" if elsewhere else "")
    return LpafError(f"cannot write {path}: {reason}")


def take_lock(opened: Any, folder: Path, what: str) -> None:
    """Keep others out of `folder` until `opened` is closed.

    Args:
        opened: a file in it, or its descriptor.
        folder: that of `--out`.
        what: is at work there, in the words of the error.

    Raises:
        LpafError: another one is.
    """
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LpafError(
            f"another {what} is using --out {folder}; wait for it, or name another folder"
        ) from None
    except OSError:  # a file system without locks
        logging.getLogger("lpaf_jax").warning("%s cannot be locked", folder)
