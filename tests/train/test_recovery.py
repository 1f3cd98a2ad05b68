"""Recovery: from a kill at any moment, from SIGTERM, from a loss or weights that overflow."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.train import Checkpoints, TrainState, make_step, run_steps, task_loss
from lpaf_jax.train.steps import Step
from tests.train.toy import OPTIMIZER, Nowhere, forward, stage_of, start
from tests.train.toy_run import STEPS

ROOT = Path(__file__).parents[2]
NEVER = 1e9


class Ended(NamedTuple):
    """A process: its exit code, the step it went on from, the last it told of."""

    code: int
    start: int | None
    last: int | None


class Nursery:
    """The process that forks those under test; see `toy_run`."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process

    def run(
        self,
        folder: Path,
        every: float = 0.0,
        *,
        sent: signal.Signals | None = None,
        after: int = 0,
        pause: float = 0.0,
    ) -> Ended:
        """Run on, and send it a signal `pause` seconds after its line number `after`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"folder": str(folder), "every": every, "result": str(result_of(folder))}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        told: dict[str, int] = {}
        for count, line in enumerate(self._process.stdout, start=1):
            word, number = line.split()
            told[word] = int(number)
            if word == "ended":
                return Ended(told["ended"], told.get("start"), told.get("step"))
            if sent is not None and count == after:
                time.sleep(pause)
                with suppress(ProcessLookupError):
                    os.kill(told["pid"], sent)
        raise AssertionError("the nursery has ended")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    screen = tmp_path_factory.mktemp("nursery") / "stderr"
    cache = tmp_path_factory.mktemp("cache")
    with (
        screen.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.toy_run", str(cache)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        yield Nursery(process)
    assert screen.read_text() == ""
    assert process.returncode == 0


def result_of(folder: Path) -> Path:
    return folder.with_suffix(".npz")


@pytest.fixture(scope="module")
def unbroken(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert nursery.run(folder, NEVER) == Ended(0, 0, STEPS)
    return arrays_of(result_of(folder))


def arrays_of(result: Path) -> dict[str, bytes]:
    with np.load(result) as held:
        return {name: held[name].tobytes() for name in held}


def whole_steps(folder: Path) -> list[int]:
    names = [place.name for place in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


@pytest.mark.slow
def test_killed_twenty_times_at_any_moment_it_ends_as_if_it_had_not_been(
    nursery: Nursery, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "run"
    reached, while_saving, starts = 0, 0, []
    for _ in range(20):
        ended = nursery.run(
            folder,
            sent=signal.SIGKILL,
            after=int(rng.integers(1, 6)),
            pause=float(rng.uniform(0, 0.03)),
        )
        assert ended.code == -signal.SIGKILL
        # All that was whole when the process before was killed counts.
        assert ended.start in (None, reached)
        starts.append(ended.start)
        reached = max(whole_steps(folder), default=0)
        # It waits for each save before the next, so it was two steps ahead at most.
        assert ended.last is None or reached >= ended.last - 2
        while_saving += any("tmp" in place.name for place in folder.glob("*"))
    assert len(set(starts)) > 5
    assert while_saving > 5
    assert nursery.run(folder) == Ended(0, reached, STEPS)
    assert arrays_of(result_of(folder)) == unbroken
    assert whole_steps(folder) == [STEPS - 1, STEPS]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.slow
def test_sigterm_saves_the_step_under_way_first(
    nursery: Nursery, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = nursery.run(folder, NEVER, sent=signal.SIGTERM, after=20)
    assert first.code == 128 + signal.SIGTERM == 143
    assert first.last is not None
    assert 17 < first.last < STEPS
    assert whole_steps(folder)[-1] == first.last
    second = nursery.run(folder, NEVER)
    assert second == Ended(0, first.last, STEPS)
    assert arrays_of(result_of(folder)) == unbroken


class Silent:
    def row(self, row: dict[str, Any]) -> None: ...


PLAIN = task_loss(forward)
STEP = make_step(PLAIN, OPTIMIZER)


def go(until: int, step: Step, state: TrainState, checkpoints: Checkpoints) -> TrainState:
    return run_steps(
        stage_of(30), step, state, {}, until=until, monitor=Silent(), checkpoints=checkpoints
    )


def went_wrong(
    folder: Path, step: Step, optimizer: optax.GradientTransformation = OPTIMIZER
) -> tuple[str, TrainState]:
    """What is told of a run of the toy that goes wrong, and the state it left."""
    with pytest.raises(LpafError) as raised:
        go(30, step, start(optimizer), Checkpoints(folder, every=0.0))
    return str(raised.value), Checkpoints(folder).restore(start(optimizer))


@pytest.mark.parametrize("bad", [1, 12, 13, 15, 20, 30])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_fails_is_named_and_the_state_before_it_is_on_disk(
    what: str, bad: int, tmp_path: Path
) -> None:
    def loss(params: Any, fixed: Any, batch: Any, keys: Any, step: jax.Array) -> Any:
        value, logged = PLAIN(params, fixed, batch, keys, step)
        if what == "loss":
            return jnp.where(batch["bad"], jnp.nan, value), logged
        size = jnp.where(batch["bad"], 0.0, 1.0) * params["head"][0, 0] ** 2
        return value + 0 * jnp.sqrt(size), logged  # with a slope of 0 · ∞ at 0

    jitted = make_step(loss, OPTIMIZER)

    def step(state: TrainState, fixed: Any, batch: Any, key: jax.Array, at: Any) -> Any:
        # Only that one batch: those after it must not hide it.
        return jitted(state, fixed, {**batch, "bad": np.bool_(at == bad - 1)}, key, at)

    message, kept = went_wrong(tmp_path / "run", step)
    assert re.match(
        rf"stage tune: training diverged at step {bad} of 30, where the loss or its gradient "
        "became NaN or infinite; lower the learning rate",
        message,
    )
    assert int(kept.step) == bad - 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept))
    expected = go(bad - 1, STEP, start(), Nowhere())
    for x, y in zip(jax.tree.leaves(kept), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("bad", "kept"), [(4, 0), (12, 10), (20, 15), (30, 25)])
def test_weights_that_overflow_are_named_and_the_checkpoint_before_is_kept(
    bad: int, kept: int, tmp_path: Path
) -> None:
    optimizer = optax.sgd(lambda step: jnp.where(step == bad - 1, 3e38, 1e-3) * 1e3)
    message, state = went_wrong(tmp_path / "run", make_step(PLAIN, optimizer), optimizer)
    assert f"diverged at step {bad} of 30, where the weights became NaN or infinite" in message
    assert int(state.step) == kept
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
