"""The command begins anew with the allocator's settings where it trains, and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.cli import allocator

ROOT = Path(__file__).parents[2]
# What a process of the command is that has got to its work.
_SHOWS = """
import os, sys
from lpaf_jax.cli import allocator, app, main
app.main = lambda argv: print(os.getpid(), *(os.environ.get(n, "-") for n in allocator.SETTINGS))
if "begun" not in os.environ:
    os.environ["begun"] = str(os.getpid())
print("as", os.environ["begun"])
main()
"""


def shown(*words: str, **more: str) -> list[str]:
    plain = {n: x for n, x in os.environ.items() if n not in (*allocator.SETTINGS, "begun")}
    command = [sys.executable, "-c", _SHOWS, *words]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "cwd": ROOT}
    return subprocess.run(command, env=plain | more, **options).stdout.splitlines()


@pytest.mark.skipif(not allocator.wanted({}), reason="the allocator is not glibc")
@pytest.mark.parametrize("command", ["compress", "compare", "intrinsic"])
def test_a_command_that_trains_has_them(command: str) -> None:
    *begun, last = shown(command, "minilm")
    pid, *found = last.split()
    assert found == list(allocator.SETTINGS.values())
    assert begun[-1] == f"as {pid}"  # it is the same process still: signals and shells find it


def test_others_and_choices_of_ones_own_are_left_alone() -> None:
    assert shown("inspect", "runs")[-1].split()[1:] == ["-"] * 3
    assert shown()[-1].split()[1:] == ["-"] * 3
    found = shown("compress", "minilm", MALLOC_MMAP_MAX_="7")[-1]
    assert found.split()[1:] == ["-", "7", "-"]


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("began anew"))
    monkeypatch.setattr(os, "environ", {})
    allocator.begin_anew(["compress"])
