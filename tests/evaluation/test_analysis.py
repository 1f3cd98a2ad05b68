"""A decoder's weights analysed block by block: the same figures, and never the whole model."""

from pathlib import Path
from typing import Any

import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.evaluation import analysis
from lpaf_jax.factorization.spectra import weight_spectra
from lpaf_jax.models import parameters
from tests.tiny_decoder import write_decoder


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_block_by_block_it_finds_what_the_whole_model_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    folder = write_decoder(tmp_path / "m", family)
    expected = weight_spectra(parameters(load_model(folder)))
    monkeypatch.setattr(analysis, "load_headless", lambda _: pytest.fail("it was read whole"))
    said: list[str] = []
    found: dict[str, Any] = analysis.analyse_model(str(folder), say=said.append)
    assert found["weights"] == expected
    assert said == [f"spectra of the weights, block {i} of 2" for i in (1, 2)]
    assert found["features"] is None
