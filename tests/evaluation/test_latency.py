"""Passes that count and those that do not."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from lpaf_jax.evaluation import latency
from lpaf_jax.evaluation.latency import time_in_turns


@pytest.mark.parametrize(("slow", "passes"), [(False, 3 + 8), (True, 2 + 5)])
def test_models_take_turns_and_slow_ones_fewer(
    monkeypatch: pytest.MonkeyPatch, slow: bool, passes: int
) -> None:
    monkeypatch.setattr(latency, "_WARM_SECONDS", 1e-9 if slow else 1e9)
    monkeypatch.setattr(latency, "_SECONDS", 0.0 if slow else 1e9)
    asked: list[str] = []

    def named(name: str) -> latency.Prepare:
        def prepare(batch: Mapping[str, np.ndarray]) -> Callable[[], object]:
            assert batch["input_ids"].shape == (2, 8)
            return lambda: asked.append(name)

        return prepare

    found = time_in_turns({n: named(n) for n in "ab"}, batches=(2,), length=8, repeats=8)
    assert "".join(asked) == "ab" * passes
    times = found["a"]["2"]
    assert 0 <= times["min"] <= times["median"] <= times["max"]
