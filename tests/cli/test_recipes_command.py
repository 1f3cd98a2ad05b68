import json
from pathlib import Path

import pytest

from lpaf_jax import cli
from lpaf_jax.recipes import make_recipe


def test_one_recipe_tells_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "lpaf"]) == 0
    said = capsys.readouterr().out
    assert said.index("Stage pruned:") < said.index("--criterion sensitivity")
    assert said.index("Stage final:") < said.index("--p-end 0.7")
    assert "--rank (not given)" in said
    assert cli.main(["recipes", "lpaf", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    recipe = make_recipe("lpaf")
    assert {k: v for stage in stages.values() for k, v in stage.items()} == recipe.settings()


def test_one_in_a_file_tells_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine-alone\nstages: [FineTune, Factorize, {Tune: {tune_lr: 0.001}}]\n")
    assert cli.main(["recipes", str(file)]) == 0
    assert "--tune-lr 0.001" in capsys.readouterr().out


def test_one_for_texts_has_no_stage_that_needs_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "channels"]) == 0
    said = capsys.readouterr().out
    assert "--finetune-epochs" not in said
    assert "--channels all" in said
    assert said.count("\nStage ") == 1


def test_an_unknown_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "lpfa"]) == 2
    assert "unknown recipe 'lpfa': choose one of lpaf," in capsys.readouterr().err
