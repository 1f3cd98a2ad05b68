import shutil
from pathlib import Path

import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.recipes import make_recipe
from lpaf_jax.runs.pipeline import compress
from tests.tiny import Tiny, cut_back, weights

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_method.py"
MINE = f"{EXAMPLE}:mine"


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "run"
    compress(**tiny.chosen(out, recipe=MINE))
    return out


def test_a_method_of_ones_own_runs_and_has_its_page(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "keeping best the weights that are large and that the loss depends on" in page
    assert "Recipe mine" in page
    card = (run / "model" / "README.md").read_text()
    assert "keeping best the weights that are large" in card


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


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    copy = shutil.copy(EXAMPLE, tmp_path / "elsewhere.py")
    with pytest.raises(LpafError, match="'salience' is registered already"):
        make_recipe(f"{copy}:mine")
    with pytest.raises(LpafError, match="there is no such file"):
        make_recipe(f"{tmp_path / 'none.py'}:mine")
