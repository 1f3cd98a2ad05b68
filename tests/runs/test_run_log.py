"""What stands in the log of a run, and what does not."""

import logging
import sys
import warnings
from pathlib import Path

import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.runs.run import Run
from lpaf_jax.runs.settings import Settings, make_settings
from tests.disk import room_for


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def settings(out: Path) -> Settings:
    return make_settings("minilm", task="sst2", out=out)


def test_messages_and_warnings_go_to_the_log_and_only_while_open(
    out: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lost:
        def __del__(self) -> None:
            raise RuntimeError("unheard")

    root, ours = logging.getLogger(), logging.getLogger("lpaf_jax")
    own = logging.FileHandler(tmp_path / "own.log")
    root.addHandler(own)
    monkeypatch.setattr(ours, "level", logging.WARNING)
    before, hook = [*root.handlers], sys.unraisablehook
    try:
        with Run(settings(out)).opened("f"), warnings.catch_warnings():
            warnings.simplefilter("always")
            ours.info("told")
            logging.getLogger("absl").warning("noise")
            warnings.warn("old function", stacklevel=1)
            lost = Lost()
            del lost
        ours.warning("afterwards")
    finally:
        root.removeHandler(own)
        own.close()
    assert [*root.handlers, own] == before
    assert ours.level == logging.WARNING
    log = (out / "logs" / "run.log").read_text()
    assert [word in log for word in ("told", "noise", "old function", "unheard", "afterwards")] == [
        *(True, True, True, True, False)
    ]
    assert sys.unraisablehook is hook
    assert "afterwards" in (tmp_path / "own.log").read_text()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LpafError("no \x1b[31mred\x1b[0m\rroom"), "ERROR lpaf_jax: no redroom\n"),
        (KeyError("defect"), "Traceback (most recent call last):\n"),
        (KeyboardInterrupt(), "WARNING lpaf_jax: stopped: KeyboardInterrupt\n"),
    ],
)
def test_what_ends_a_run_stands_in_its_log_after_what_was_there(
    out: Path, error: BaseException, told: str
) -> None:
    for count in (1, 2):
        with pytest.raises(type(error)), Run(settings(out)).opened("f"):
            raise error
        log = (out / "logs" / "run.log").read_bytes().decode()
        assert log.count(told) == count
        assert not set("\r\x1b") & set(log)


def test_a_log_that_cannot_be_written_is_no_trouble_of_its_own(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run(settings(out)).opened("f"):
        pass
    with room_for(10), Run(settings(out)).opened("f"):
        logging.getLogger("lpaf_jax").info("a line longer than ten bytes")
    assert capsys.readouterr() == ("", "")
    with Run(settings(out)).opened("f"):  # and the lock is free
        pass
