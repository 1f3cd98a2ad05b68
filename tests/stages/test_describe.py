"""What a stage says of itself on pages and cards."""

import pytest

from lpaf_jax.stages import Factorize

WHOLE = {
    "alternate": "Every second block stays dense",
    "feed-forward": "Attention matrices stay dense.",
    "share": "need their full rank stay dense",
}
CUT = {
    "alternate": "matrices of every second block",
    "feed-forward": "feed-forward matrices (m × n)",
    "share": "query, key, value, attention-output",
}


@pytest.mark.parametrize("ranks", WHOLE)
def test_it_says_which_matrices_stay_whole(ranks: str) -> None:
    stage = Factorize(importance="none", solver="kronecker-pairs", ranks=ranks)
    described = stage.describe({"ranks": {"a": 1}, "metric": "accuracy", "retrained": True})
    assert [rule for rule, words in WHOLE.items() if words in described.text] == [ranks]
    assert CUT[ranks] in described.card
