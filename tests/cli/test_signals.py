"""How a process of the command ends when a signal comes."""

import os
import signal
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax import cli

ROOT = Path(__file__).parents[2]
# The command is at work: something native runs in a thread that Python cannot stop, a word is
# still in a buffer, and the second signal finds whatever `second` says; or what the first one
# raises is lost, and the second comes right after it.
_PROGRAM = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from lpaf_jax.cli import app as cli
number, second = signal.Signals(int(sys.argv[1])), sys.argv[2]

class Lost:
    def __del__(self):
        signal.raise_signal(number)

class Screen:
    def write(self, text):
        signal.raise_signal(signal.SIGINT)
        return sys.__stderr__.write(text)
    def flush(self):
        sys.__stderr__.flush()

def work(command):
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("begun", end="")
    try:
        if second == "lost":
            from lpaf_jax.runs.run import Run
            from lpaf_jax.runs.settings import make_settings
            with Run(make_settings("minilm", task="sst2", out="x")).opened("f"):
                Lost()
                signal.raise_signal(number)
                time.sleep(60)
        signal.raise_signal(number)
        time.sleep(60)
    finally:
        if second == "cleaning":
            signal.raise_signal(number)
        if second == "message":
            sys.stderr = Screen()

cli._run = work
sys.argv = ["lpaf", *sys.argv[3:]]
sys.exit(cli.main())
"""
_TRAINED = "compress minilm --task sst2 --out x"
_UNTRAINED = "compress m --calibration c.txt --out x"
_AGAIN = "; run the same command again to resume"


@pytest.mark.parametrize(
    ("command", "number", "second", "code", "told"),
    [
        (_UNTRAINED, signal.SIGINT, "none", 130, f"interrupted{_AGAIN}"),
        (_TRAINED, signal.SIGINT, "cleaning", 130, f"interrupted{_AGAIN}"),
        (_TRAINED, signal.SIGTERM, "none", 143, f"terminated{_AGAIN}"),
        (_TRAINED, signal.SIGINT, "lost", 130, f"interrupted{_AGAIN}"),
        (_TRAINED, signal.SIGTERM, "lost", 143, f"terminated{_AGAIN}"),
        ("predict m", signal.SIGINT, "message", 130, "interrupted"),
        ("predict m", signal.SIGTERM, "cleaning", 143, "terminated"),
    ],
)
def test_a_signal_ends_the_process_at_once_with_a_line_and_nothing_after_it(
    tmp_path: Path, command: str, number: signal.Signals, second: str, code: int, told: str
) -> None:
    words = [sys.executable, "-c", _PROGRAM, str(int(number)), second, *command.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=30, cwd=tmp_path, env=environment
    )
    assert done.stderr == f"lpaf: {told}\n"
    assert (done.returncode, done.stdout) == (code, "begun")


def test_ctrl_c_while_the_command_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(MetaPathFinder):
        def find_spec(self, name: str, path: Any, target: Any = None) -> None:
            if name == "lpaf_jax.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "lpaf_jax.cli.app", raising=False)
    monkeypatch.delattr("lpaf_jax.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert cli.main(["recipes"]) == 130
    assert capsys.readouterr().err == "lpaf: interrupted\n"
