import json

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


def test_an_unknown_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "lpfa"]) == 2
    assert "unknown recipe 'lpfa': choose one of lpaf," in capsys.readouterr().err
