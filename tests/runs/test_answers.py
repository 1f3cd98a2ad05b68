"""A stage is asked once, by whichever run is evaluated first."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lpaf_jax.core.files import read_json
from lpaf_jax.runs.answers import evaluation_batch, keep_answers, read_answers
from lpaf_jax.runs.pipeline import compress
from tests.tiny import Tiny

pytestmark = pytest.mark.usefixtures("no_latency")


@pytest.mark.parametrize(
    ("counts", "size"), [((36, 14), 19), ((1705, 853), 32), ((5, 3), 8), ((64, 32), 32)]
)
def test_a_batch_is_not_mostly_filling(counts: tuple[int, ...], size: int) -> None:
    assert evaluation_batch(counts) == size


@pytest.fixture
def unevaluated(finished: Path, tmp_path: Path) -> Path:
    """A run whose models are all made."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "metrics.json").unlink()
    return folder


def test_what_is_kept_is_not_asked_again(tiny: Tiny, finished: Path, unevaluated: Path) -> None:
    kept = read_answers(unevaluated / "stages/dense")
    kept["test"] = -kept["test"]  # two classes: right is wrong
    keep_answers(unevaluated / "stages/dense", kept)
    found, whole = compress(**tiny.chosen(unevaluated)), read_json(finished / "metrics.json")
    assert found["stages"]["dense"]["accuracy"] == pytest.approx(
        1 - whole["stages"]["dense"]["accuracy"]
    )
    assert found["stages"]["final"] == whole["stages"]["final"]


@pytest.mark.parametrize("left", ["a part", "one split"])
def test_what_is_not_there_is_asked_and_kept(
    tiny: Tiny, finished: Path, unevaluated: Path, left: str
) -> None:
    stage = unevaluated / "stages/dense"
    file, before = stage / "answers.npz", read_answers(stage)
    if left == "a part":
        file.write_bytes(file.read_bytes()[:200])
        assert read_answers(stage) == {}
    else:
        keep_answers(stage, {"validation": before["validation"]})
    found = compress(**tiny.chosen(unevaluated))
    assert found["stages"] == read_json(finished / "metrics.json")["stages"]
    after = read_answers(stage)
    assert after.keys() == before.keys()
    for name, x in before.items():
        np.testing.assert_allclose(after[name], x, atol=1e-6)
