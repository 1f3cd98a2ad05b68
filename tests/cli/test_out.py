"""Where a run goes that is not told where."""

import os
from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.cli import app, main


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("minilm --task rotten_tomatoes", "minilm-rotten_tomatoes"),
        ("minilm --task sst2 --recipe kfac-svd --params 0.25", "minilm-sst2-kfac-svd-0.25"),
        ("some/where/model/ --task a/reviews.csv --seed=3", "model-reviews-3"),
        ("owner/name --calibration text.txt --preset quick", "name-text-quick"),
        ("x/SmolLM2-135M.Q4_1.gguf --calibration imdb", "SmolLM2-135M.Q4_1-imdb"),
    ],
)
def test_its_folder_is_named_by_what_tells_it_apart(words: str, folder: str) -> None:
    assert app._parse(["compress", *words.split()]).out == Path("runs", folder)


def test_what_is_said_is_done() -> None:
    assert app._parse(["compress", "minilm", "--task", "sst2", "--out", "here"]).out == Path("here")
    assert app._parse(["compress", "minilm", "--task", "sst2", "--out=here"]).out == Path("here")


def test_a_run_goes_there_and_goes_on_there(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = tiny.arguments(Path("unused"), recipe="svd-ft", keep="final")
    at = words.index("--out")
    del words[at : at + 2]
    words.remove("--quiet")
    assert main(words) == 0
    (run,) = os.listdir("runs")
    assert run.startswith(f"{tiny.model.name}-{tiny.data.stem}-svd-ft")
    assert f"runs/{run}/report.html" in capsys.readouterr().out
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().err
