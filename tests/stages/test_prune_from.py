"""Pruning while the pretrained model is fine-tuned: the fine-tuned one is a reference alone."""

from pathlib import Path

import pytest

from lpaf_jax.runs.pipeline import compress
from tests.tiny import Tiny


def pruned(tiny: Tiny, out: Path, **chosen: object) -> bytes:
    compress(**tiny.chosen(out, tune_epochs=0.0, prune_epochs=0.5, **chosen))
    return (out / "stages" / "pruned" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_what_was_fine_tuned_before_makes_no_difference(tiny: Tiny, tmp_path: Path) -> None:
    from_scratch = {"prune_from": "pretrained"}
    one = pruned(tiny, tmp_path / "one", finetune_epochs=0.25, **from_scratch)
    other = pruned(tiny, tmp_path / "other", finetune_epochs=0.5, **from_scratch)
    assert one == other
    page = (tmp_path / "one" / "report.html").read_text()
    assert "While the pretrained model is fine-tuned again" in page
