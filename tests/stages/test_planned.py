"""What ranks a run comes to, before it begins."""

from pathlib import Path

from lpaf_jax.runs.settings import make_settings
from lpaf_jax.stages.planned import one_rank
from lpaf_jax.tasks.inputs import load_inputs
from tests.tiny import ENCODER, SIDES, Tiny


def test_the_rank_is_the_largest_that_keeps_no_more_than_asked_for(tiny: Tiny) -> None:
    settings = make_settings(**tiny.chosen(Path("unused")))
    inputs = load_inputs(settings)
    for params in (1.0, 0.5, 0.25, 0.16):
        asked = make_settings(**tiny.chosen(Path("unused"), params=params))
        rank = one_rank(asked.factorize, inputs)
        assert rank * SIDES <= params * ENCODER < (rank + 1) * SIDES
    least = make_settings(**tiny.chosen(Path("unused"), params=1e-6))
    assert one_rank(least.factorize, inputs) == 1
    given = make_settings(**tiny.chosen(Path("unused"), rank=7, params=None))
    assert one_rank(given.factorize, inputs) == 7
