"""Whole or absent: what stands at a path after a write that failed, was cut off or went through."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lpaf_jax.core import files
from lpaf_jax.core.errors import LpafError
from tests.disk import room_for


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Nothing is unwritable for root, so be nobody for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def finished_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with files.atomic_write(path) as temporary:
            temporary.write_text(text)
        assert path.read_text() == text
    assert names(path.parent) == ["a.txt"]


def test_dir_replaces_every_file_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "stages" / "dense"
    for name in ("old", "new"):
        with files.atomic_dir(path) as temporary:
            (temporary / name).write_text(name)
    assert names(path) == ["new"]
    assert names(path.parent) == ["dense"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, LpafError])
def test_an_error_halfway_leaves_the_old_one_whole(
    tmp_path: Path, error: type[BaseException]
) -> None:
    files.write_json(tmp_path / "a.json", "old")
    with files.atomic_dir(tmp_path / "model") as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(error), files.atomic_write(tmp_path / "a.json") as temporary:
        temporary.write_text('"ne')
        raise error
    with pytest.raises(error), files.atomic_dir(tmp_path / "model") as temporary:
        (temporary / "a").write_text("ne")
        raise error
    assert files.read_json(tmp_path / "a.json") == "old"
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert names(tmp_path) == ["a.json", "model"]


def test_a_killed_process_leaves_the_old_one_and_the_next_write_tidies_up(tmp_path: Path) -> None:
    with files.atomic_dir(tmp_path / "model") as temporary:
        (temporary / "a").write_text("old")
    code = (
        "import os, pathlib, sys; from lpaf_jax.core import files\n"
        "with files.atomic_dir(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    (temporary / 'a').write_text('ne')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "model"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert len(names(tmp_path)) == 2  # what it had written so far
    with files.atomic_dir(tmp_path / "model") as temporary:
        (temporary / "a").write_text("new")
    assert (tmp_path / "model" / "a").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_leftovers_under_our_own_number_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".model.{os.getpid()}.tmp").mkdir()
    (tmp_path / f".model.{os.getpid()}.tmp" / "half").write_text("x")
    with files.atomic_dir(tmp_path / "model") as temporary:
        assert names(temporary) == []
    assert names(tmp_path) == ["model"]


def test_what_a_running_process_is_writing_stays(tmp_path: Path) -> None:
    (tmp_path / f".a.json.{os.getppid()}.tmp").write_text("theirs")
    (tmp_path / f".b.json.{finished_pid()}.tmp").write_text("another file's")
    files.write_json(tmp_path / "a.json", 1)
    assert len(names(tmp_path)) == 3


def test_killed_between_the_two_moves_the_old_folder_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / f".model.{finished_pid()}.old"
    aside.mkdir()
    (aside / "a").write_text("old")
    with pytest.raises(RuntimeError), files.atomic_dir(tmp_path / "model"):
        raise RuntimeError
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("error", "seen"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.EIO, "I/O error"), LpafError)],
)
def test_stopped_between_the_two_moves_the_old_folder_comes_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    seen: type[BaseException],
) -> None:
    path = tmp_path / "model"
    with files.atomic_dir(path) as temporary:
        (temporary / "a").write_text("old")
    replace = os.replace

    def stop_at_the_second(source: Path, target: Path) -> None:
        if source.suffix == ".tmp":
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop_at_the_second)
    with pytest.raises(seen), files.atomic_dir(path) as temporary:
        (temporary / "a").write_text("new")
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", "old")
    with room_for(4096), pytest.raises(LpafError, match=r"cannot write .*a\.json: File too large"):
        files.write_json(tmp_path / "a.json", "new" * 4096)
    with (
        room_for(4096),
        pytest.raises(LpafError, match=r"cannot write .*model: .*File too large"),
        files.atomic_dir(tmp_path / "model") as temporary,
    ):
        save_file({"a": np.zeros(4096, np.float32)}, temporary / "model.safetensors")
    assert files.read_json(tmp_path / "a.json") == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_file_where_a_folder_must_be(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(LpafError, match=r"cannot write .*taken/a\.json"):
        files.write_json(tmp_path / "taken" / "a.json", 1)
    with pytest.raises(LpafError, match=r"taken/a"), files.atomic_dir(tmp_path / "taken" / "a"):
        pytest.fail("the work began")
    with pytest.raises(LpafError, match="is a file"), files.atomic_dir(tmp_path / "taken"):
        pytest.fail("the work began")
    assert (tmp_path / "taken").read_text() == "mine"
    assert names(tmp_path) == ["taken"]


def test_an_unwritable_folder() -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to all but its owner
        folder = Path(name)
        folder.chmod(0o555)
        with (
            ordinary_user(),
            pytest.raises(LpafError, match=r"cannot write .*a\.json: Permission denied"),
        ):
            files.write_json(folder / "a.json", 1)
        with (
            ordinary_user(),
            pytest.raises(LpafError, match=r"cannot write .*model: Permission denied"),
            files.atomic_dir(folder / "model"),
        ):
            pytest.fail("the work began")
        assert names(folder) == []


def test_an_unreadable_source_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "vocab.txt"
    with pytest.raises(LpafError, match=r"vocab\.txt"), files.atomic_dir(tmp_path / "model"):
        missing.read_text()


def test_json_that_cannot_be_written_leaves_the_old(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"accuracy": 0.8125, "name": "σ"})
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"accuracy": np.float32(0.5)})
    assert files.read_json(tmp_path / "a.json") == {"accuracy": 0.8125, "name": "σ"}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(LpafError, match=r"a\.json cannot be read as JSON"):
        files.read_json(tmp_path / "a.json")


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(LpafError, match=r"a\.json does not exist"):
        files.read_json(tmp_path / "a.json")


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    value = {"a": [math.nan, 1.5], "b": (math.inf, {"c": -math.inf}), "d": "NaN", "e": None}
    files.write_json(tmp_path / "x.json", value)
    for text in ((tmp_path / "x.json").read_text(), files.json_text(value)):
        found = json.loads(text, parse_constant=pytest.fail)
        assert found == {"a": [None, 1.5], "b": [None, {"c": None}], "d": "NaN", "e": None}
    assert "\n" not in files.json_text(value)
