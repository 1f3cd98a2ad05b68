from pathlib import Path
from typing import Any

from lpaf_jax.stages import Context, Factorize, FineTune, Tune
from lpaf_jax.stages.base import Place


def test_where_the_factors_came_from_is_known_after_they_were_tuned() -> None:
    stages = {"dense": FineTune(), "factorized": Factorize(), "tuned": Tune()}
    finished = tuple(Place(Path(name), stage) for name, stage in stages.items())
    nothing: Any = None
    context = Context(nothing, nothing, nothing, finished, nothing, "tune")
    assert context.before == Path("tuned")
    assert context.before_last(Factorize) == Path("dense")
