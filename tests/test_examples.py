import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.recipes import make_recipe
from lpaf_jax.runs.pipeline import compress
from tests.tiny import Tiny, cut_back, weights
from tests.tiny_decoder import write_decoder, write_text

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_method.py"
MINE = f"{EXAMPLE}:mine"


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "run"
    compress(**tiny.chosen(out, recipe=MINE))
    return out


def test_a_method_of_ones_own_runs_and_has_its_page(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "to preserve the weights that are large and that the loss depends on" in page
    assert "Recipe mine" in page
    card = (run / "model" / "README.md").read_text()
    assert "to preserve the weights that are large" in card


def test_it_goes_on_where_it_was_stopped(run: Path, tiny: Tiny, tmp_path: Path) -> None:
    again = cut_back(run, tmp_path / "again", "final", "factorized")
    compress(**tiny.chosen(again, recipe=MINE))
    assert weights(again) == weights(run)


def test_another_run_takes_over_what_is_the_same(run: Path, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "svd"
    found = compress(**tiny.chosen(out, recipe="svd", reuse=run))
    assert found["seconds"].keys() == {"final", "evaluate", "total"}
    first, second = (folder / "stages" / "dense" / "model.safetensors" for folder in (run, out))
    assert first.read_bytes() == second.read_bytes()


def example(name: str) -> Callable[..., None]:
    found: Callable[..., None] = runpy.run_path(str(EXAMPLE.with_name(f"{name}.py")))["main"]
    return found


def test_a_decoder_by_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_decoder(tmp_path / "llama", "llama")
    text = write_text(tmp_path / "text.txt", 900, seed=0)
    example("decoder")(str(model), str(text), str(tmp_path / "run"), 8)
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith("final        perplexity")
    assert len(told[2].split()) == 8


def test_the_solver_alone(capsys: pytest.CaptureFixture[str]) -> None:
    example("solver")()
    told = capsys.readouterr().out
    assert "aware of inputs" in told
    assert "(3, 96, 16) (3, 16, 192)" in told


def test_the_result_in_pytorch(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    example("in_pytorch")(str(finished / "model"), "a fine film", "a poor film")
    names = json.loads((finished / "model" / "config.json").read_text())["id2label"].values()
    told = capsys.readouterr().out.split()
    assert len(told) == 2
    assert set(told) <= set(names)


@pytest.mark.slow
def test_a_classifier(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("classifier")(str(tiny.model), str(tiny.data), str(tmp_path / "run"))
    told = capsys.readouterr().out
    assert "of all numbers are left" in told
    assert "a moving and funny film ->" in told


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    copy = shutil.copy(EXAMPLE, tmp_path / "elsewhere.py")
    with pytest.raises(LpafError, match="'salience' is registered already"):
        make_recipe(f"{copy}:mine")
    with pytest.raises(LpafError, match="there is no such file"):
        make_recipe(f"{tmp_path / 'none.py'}:mine")


@pytest.mark.slow
def test_several_devices(tiny: Tiny, tmp_path: Path) -> None:
    words = [sys.executable, "examples/several_devices.py", str(tiny.model), str(tiny.data)]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [*words, str(tmp_path / "run")],
        cwd=EXAMPLE.parents[1],
        env=os.environ | flags | {"PYTHONPATH": str(EXAMPLE.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("4 matrices on 2 devices: 0.")
    assert said[-1].startswith("accuracy ")
