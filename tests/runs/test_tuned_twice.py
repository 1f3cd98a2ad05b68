"""A recipe that tunes twice: each time from checkpoints of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.core.progress import read_rows
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.stages import Factorize, FineTune, Tune
from lpaf_jax.train import Checkpoints
from tests.tiny import Tiny

TWICE = Recipe(
    FineTune(),
    Factorize(importance="none", solver="plain"),
    Tune(tune_epochs=0.5),
    Tune(tune_epochs=0.5),
    name="twice",
)


def run(tiny: Tiny, out: Path) -> dict[str, Any]:
    chosen = {"finetune_epochs": 0.5, "params": 0.5, "batch": 8, "length": 16, "quiet": True}
    return compress(tiny.model, task=tiny.data, out=out, recipe=TWICE, **chosen)


@pytest.mark.slow
def test_killed_between_its_model_and_its_checkpoints(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny, tmp_path / "unbroken")

    def die(self: Checkpoints) -> None:
        if (tmp_path / "broken" / "stages" / "tuned").is_dir():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "remove", die)
        run(tiny, tmp_path / "broken")
    assert list((tmp_path / "broken").glob("**/tune*/*"))
    found = run(tiny, tmp_path / "broken")
    logged = {row["stage"] for row in read_rows(tmp_path / "broken" / "logs" / "train.jsonl")}
    assert logged == {"finetune", "tune", "tune-2"}
    assert found["described"]["final"]["logs"] == "tune-2"
    assert list(found["stages"]) == ["dense", "factorized", "tuned", "final"]
    for name, x in load_file(tmp_path / "unbroken" / "model" / "model.safetensors").items():
        other = load_file(tmp_path / "broken" / "model" / "model.safetensors")[name]
        np.testing.assert_array_equal(x, other, err_msg=name)
