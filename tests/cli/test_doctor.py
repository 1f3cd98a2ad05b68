"""What `lpaf doctor` and `lpaf report` say."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.cli import doctor, main


def test_all_is_looked_at(tmp_path: Path, capsys: Any) -> None:
    assert main(["doctor", "--out", str(tmp_path / "not" / "there")]) == 0
    found = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert found[:3] == ["python", "packages", "devices"]
    assert {"cores", "disk", "torch", "smollm2", "reviews"} <= set(found)


def test_too_little_memory_or_disk_is_said(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(doctor, "_free_memory", lambda: 2**30)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main(["doctor", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "!!  memory        1.0 GiB free (a run of MiniLM takes" in said.out
    assert "--keep final" in said.out
    assert said.err == "lpaf: error: fix memory and disk first\n"


def test_the_page_is_made_again(finished: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    page = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text() == page


@pytest.mark.parametrize("name", ["there", "elsewhere"])
def test_a_folder_without_figures_has_no_page(tmp_path: Path, name: str, capsys: Any) -> None:
    (tmp_path / "there").mkdir()
    assert main(["report", str(tmp_path / name)]) == 2
    assert "has no results yet" in capsys.readouterr().err
