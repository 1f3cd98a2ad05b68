"""The loop: where it stands in the data, what it tells, and how it goes on after a stop."""

import os
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError, Terminated
from lpaf_jax.data import Encoded
from lpaf_jax.train import (
    Checkpoints,
    Loop,
    TrainState,
    make_step,
    predict,
    run_steps,
    task_loss,
)
from lpaf_jax.train.pace import Pace
from tests.train.toy import BATCH, EXAMPLES, OPTIMIZER, Nowhere, data, forward, stage_of, start

STEPS = 23


class Rows(list):
    """A monitor that remembers; raises Killed when it is told of step `dies_at`."""

    def __init__(self, dies_at: int | None = None):
        super().__init__()
        self.dies_at = dies_at

    def row(self, row: dict[str, Any]) -> None:
        if row["step"] == self.dies_at:
            raise Killed
        self.append(row)


class Killed(Exception):
    pass


STEP = make_step(task_loss(forward), OPTIMIZER)  # compiled once for all tests


@pytest.fixture
def stage() -> Loop:
    return stage_of(STEPS)


def go(
    stage: Loop,
    state: TrainState,
    *,
    folder: Path | None = None,
    until: int = STEPS,
    monitor: Any = None,
    step: Any = STEP,
    **more: Any,
) -> TrainState:
    """Run to `until`, saving at every chance where there is a folder."""
    return run_steps(
        stage,
        step,
        state,
        {},
        until=until,
        monitor=Rows() if monitor is None else monitor,
        checkpoints=Checkpoints(folder, every=0.0) if folder else Nowhere(),
        **more,
    )


def saved(folder: Path) -> TrainState:
    return Checkpoints(folder).restore(start())


@pytest.fixture(scope="module")
def unbroken() -> tuple[TrainState, Rows]:
    rows = Rows()
    return go(stage_of(STEPS), start(), monitor=rows), rows


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in rows]


def assert_same(first: TrainState, second: TrainState) -> None:
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_pace_leaves_out_what_the_first_step_of_a_kind_and_validation_take() -> None:
    met = set()

    def slow_at_first(state: TrainState, fixed: Any, batch: Any, key: Any, at: Any) -> Any:
        if batch["input_ids"].shape not in met:
            met.add(batch["input_ids"].shape)
            clock[0] += 100.0
        clock[0] += 2.0
        return STEP(state, fixed, batch, key, at)

    def validate(params: Any) -> float:
        clock[0] += 50.0
        return 0.5

    clock = [0.0]
    rows = Rows()
    ids = [np.arange(8 if i < EXAMPLES // 2 else 28, dtype=np.int32) for i in range(EXAMPLES)]
    labels = np.arange(EXAMPLES, dtype=np.int32) % 2
    mixed = Encoded(ids, [np.zeros_like(i) for i in ids], labels, max_length=32, pad_id=0)
    stage = Loop("tune", mixed, BATCH, STEPS, seed=3, validate=validate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lpaf_jax.train.loop.Pace", lambda: Pace(lambda: clock[0]))
        go(stage, start(), step=slow_at_first, monitor=rows)
    assert len(met) > 1
    assert [row["seconds_per_step"] for row in rows if "loss" in row] == [2.0, 2.0, 2.0]


def test_rows(unbroken: tuple[TrainState, Rows]) -> None:
    state, rows = unbroken
    assert int(state.step) == STEPS
    logged = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logged] == [10, 20, 23]
    assert all(row["stage"] == "tune" and row["steps"] == STEPS for row in logged)
    assert all(row["seconds_per_step"] >= 0 for row in logged)
    validated = [row for row in rows if "validation_accuracy" in row]
    assert [row["step"] for row in validated] == [5, 10, 15, 20, 23]  # ends of epochs, and the end
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


def test_each_epoch_takes_its_own_batches(stage: Loop) -> None:
    seen = []

    def spy(state: TrainState, fixed: Any, batch: Any, key: Any, at: Any) -> Any:
        assert at == len(seen)
        seen.append(batch["input_ids"])
        return state._replace(step=state.step + 1), {"loss": jnp.float32(1)}

    go(stage, start(), step=spy)
    assert len(seen) == STEPS
    epochs = [np.sort(np.concatenate(seen[i : i + 5]), axis=0) for i in (0, 5, 10, 15)]
    assert not any(np.array_equal(epochs[0], other) for other in epochs[1:])


@pytest.mark.parametrize("stop", range(1, STEPS, 3))
def test_stopping_anywhere_changes_nothing(
    stop: int, stage: Loop, unbroken: tuple[TrainState, Rows]
) -> None:
    rows = Rows()
    half = go(stage, start(), until=stop, monitor=rows)
    assert int(half.step) == stop
    assert rows[-1]["step"] == stop or stop < 5  # the end of a part is logged too
    assert_same(go(stage, half), unbroken[0])


@pytest.mark.parametrize("dies_at", [20, 15, 23])
def test_killed_and_resumed(
    dies_at: int, stage: Loop, unbroken: tuple[TrainState, Rows], tmp_path: Path
) -> None:
    first = Rows(dies_at)
    with pytest.raises(Killed):
        go(stage, start(), folder=tmp_path, monitor=first)
    state = saved(tmp_path)
    resumed_at = int(state.step)
    # Also the epochs end with a save, after their row.
    assert resumed_at == {20: 15, 15: 10, 23: 20}[dies_at]
    second = Rows()
    assert_same(go(stage, state, folder=tmp_path, monitor=second), unbroken[0])
    known = [row for row in first if row["step"] < resumed_at or "loss" in row]
    rows = {(r["step"], "loss" in r): r for r in plain([*known, *second])}
    for row in plain(unbroken[1]):
        if row["step"] != resumed_at:  # its validation may fall between save and kill
            assert rows[row["step"], "loss" in row] == row


def test_finished_state_does_nothing(stage: Loop, unbroken: tuple[TrainState, Rows]) -> None:
    rows = Rows()
    assert_same(go(stage, unbroken[0], monitor=rows), unbroken[0])
    assert rows == []


def test_extras_are_logged_by_step(stage: Loop) -> None:
    rows = Rows()
    go(stage, start(), monitor=rows, extras=lambda t: {"lr": 1.0 / t})
    assert [row["lr"] for row in rows if "loss" in row] == [1 / 10, 1 / 20, 1 / 23]


def breaks_at(bad: int, loss: float, weight: float) -> Any:
    """A step with `loss`, and then `weight` for all weights, at step `bad`; others change nothing.

    As those of `make_step`, it does nothing with a batch that is not the next.
    """

    def step(state: TrainState, fixed: Any, batch: Any, key: Any, at: Any) -> Any:
        if int(state.step) != at or (at == bad - 1 and not np.isfinite(loss)):
            return state, {"loss": jnp.float32(jnp.nan)}
        now = at == bad - 1
        params = {k: jnp.full_like(v, weight) if now else v for k, v in state.params.items()}
        return TrainState(state.step + 1, params, state.opt_state), {"loss": jnp.float32(0.7)}

    return step


@pytest.mark.parametrize(
    ("bad", "loss", "weight", "kept"),
    [
        (14, np.nan, 1.0, 13),
        (10, 0.7, np.nan, 5),  # a finite loss at the last good weights
        (20, 0.7, np.inf, 15),
        (22, np.nan, 1.0, 21),
    ],
)
def test_divergence_names_stage_and_step_and_saves_nothing_bad(
    bad: int, loss: float, weight: float, kept: int, stage: Loop, tmp_path: Path
) -> None:
    rows = Rows()
    with pytest.raises(LpafError, match=f"stage tune.*step {bad} of 23.*learning rate"):
        go(stage, start(), folder=tmp_path, monitor=rows, step=breaks_at(bad, loss, weight))
    # Nothing is told of what is not: no validation of a state that stands still.
    assert all(row["step"] < bad for row in rows)
    found = saved(tmp_path)
    assert int(found.step) == kept
    assert all(np.isfinite(x).all() for x in found.params.values())


def test_divergence_is_noticed_where_a_part_ends(stage: Loop) -> None:
    with pytest.raises(LpafError, match="step 4 of 23"):
        go(stage, start(), until=4, step=breaks_at(4, 0.7, np.nan))


def test_sigterm_ends_the_loop_after_the_step_under_way(
    stage: Loop, unbroken: tuple[TrainState, Rows], tmp_path: Path
) -> None:
    class Terminating(Rows):
        def row(self, row: dict[str, Any]) -> None:
            super().row(row)
            if row["step"] == 10:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    rows = Terminating()
    with pytest.raises(Terminated) as raised:
        go(stage, start(), folder=tmp_path, monitor=rows)
    assert raised.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert "loss" in rows[-1]  # the validation that was due is left out
    state = saved(tmp_path)
    assert int(state.step) == 10
    assert_same(go(stage, state), unbroken[0])


def test_predict_gives_each_example_its_own_logits() -> None:
    params = start().params
    found = predict(forward, params, data(), 4)
    words, head = np.asarray(params["words"], float), np.asarray(params["head"], float)
    expected = [words[ids].mean(0) @ head for ids in data().ids]
    assert found.shape == (EXAMPLES, 2)  # 22 examples in batches of 4: two rows of padding
    np.testing.assert_allclose(found, expected, atol=1e-5)
