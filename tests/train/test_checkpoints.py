"""Checkpoints: bit-equal, never half-written, and a damaged one does not end a run."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.errors import LpafError
from lpaf_jax.train import Checkpoints, Stopwatch, TrainState
from lpaf_jax.train import checkpoints as module
from tests.disk import room_for


class Moments(NamedTuple):
    count: Any
    mu: Any
    masks: Any


def state(step: int, columns: int = 3) -> TrainState:
    rng = np.random.default_rng(step)
    w = rng.normal(size=(2, columns)).astype(np.float32)
    w[0, :3] = -0.0, np.finfo(np.float32).smallest_subnormal, 3e38
    mask = rng.random((2, columns)) < 0.5
    opt = Moments(jnp.int32(step), {"w": jnp.asarray(-w)}, [jnp.asarray(mask), None])
    return TrainState(jnp.int32(step), {"w": jnp.asarray(w), "b": jnp.zeros(())}, opt)


LIKE = state(0)


def bits(tree: Any) -> list[tuple[Any, tuple[int, ...], bytes]]:
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoints = Checkpoints(folder)
        checkpoints.save_if_due(state(step), now=True)
        checkpoints.close()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def flip_a_bit(data: bytes) -> bytes:
    place = data.index(np.asarray(state(20).params["w"]).tobytes())
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "nearly whole": lambda data: data[:-1],
    "empty": lambda data: b"",
    "something else": lambda data: b"not an archive " * 20,
    "one bit": flip_a_bit,
}


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    save(tmp_path / "stage", 12)
    found = Checkpoints(tmp_path / "stage").restore(LIKE)
    assert jax.tree.structure(found) == jax.tree.structure(LIKE)
    assert bits(found) == bits(state(12))


def test_restored_state_may_be_donated(tmp_path: Path) -> None:
    save(tmp_path, 12)
    found = Checkpoints(tmp_path).restore(LIKE)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x, s), donate_argnums=0)
    assert bits(step(found)) == bits(state(12))
    assert bits(Checkpoints(tmp_path).restore(LIKE)) == bits(state(12))


def test_saved_state_is_the_one_at_the_time_of_saving(tmp_path: Path) -> None:
    live = state(12)
    Checkpoints(tmp_path).save_if_due(live, now=True)
    for array in jax.tree.leaves(live):
        array.delete()  # as the next step does, by donation
    assert bits(Checkpoints(tmp_path).restore(LIKE)) == bits(state(12))


def test_nothing_there(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").restore(LIKE) is LIKE
    assert not (tmp_path / "none").exists()
    assert Checkpoints(tmp_path).restore(LIKE) is LIKE


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 8, 9, 10, 11)
    assert len(names(tmp_path)) == 2
    assert int(Checkpoints(tmp_path).restore(LIKE).step) == 11
    max(tmp_path.iterdir()).unlink()
    assert int(Checkpoints(tmp_path).restore(LIKE).step) == 10


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_newest_gives_way_to_the_one_before(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10, 20)
    newest = max(tmp_path.iterdir())
    newest.write_bytes(DAMAGE[kind](newest.read_bytes()))
    with caplog.at_level(logging.WARNING, logger="lpaf_jax"):
        found = Checkpoints(tmp_path).restore(LIKE)
    assert bits(found) == bits(state(10))
    assert [str(newest) in record.getMessage() for record in caplog.records] == [True]


def test_saves_after_a_damaged_one_count(tmp_path: Path) -> None:
    # The run goes on from before the damaged state and must not lose what it then does.
    save(tmp_path, 10, 20)
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    for step in (12, 15, 20):
        save(tmp_path, step)
        assert int(Checkpoints(tmp_path).restore(LIKE).step) == step


def test_all_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 10, 20)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    with caplog.at_level(logging.WARNING, logger="lpaf_jax"):
        assert Checkpoints(tmp_path).restore(LIKE) is LIKE
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "like",
    [
        state(0, columns=4),
        LIKE._replace(opt_state=None),
        LIKE._replace(params={**LIKE.params, "b": jnp.int32(0)}),
    ],
    ids=["shape", "number", "dtype"],
)
def test_state_of_something_else_is_not_taken(like: TrainState, tmp_path: Path) -> None:
    save(tmp_path, 10)
    assert Checkpoints(tmp_path).restore(like) is like


def test_saves_go_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 100.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: clock["now"])
    checkpoints = Checkpoints(tmp_path, every=60)
    saved = []
    for step, clock["now"] in enumerate((130.0, 159.9, 160.0, 219.0, 220.0), start=1):
        checkpoints.save_if_due(state(step))
        saved.append(int(checkpoints.restore(LIKE).step))
    assert saved == [0, 0, 3, 3, 5]


def test_seconds_go_on_from_those_of_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 100.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: clock["now"])
    first = Stopwatch()
    before, after = (Checkpoints(tmp_path / n, stopwatch=first) for n in ("a", "b"))
    clock["now"] = 130.0
    before.save_if_due(state(10), now=True)
    clock["now"] = 150.0
    after.save_if_due(state(20), now=True)
    clock["now"] = 1000.0  # what is not saved is done again, and not counted twice
    for name, taken in (("a", 30.0), ("b", 50.0), ("none", 0.0)):
        again = Stopwatch()
        checkpoints = Checkpoints(tmp_path / name, stopwatch=again)
        clock["now"] += 4.0
        for _ in range(2):
            checkpoints.restore(LIKE)
        assert again.seconds() == taken + 4.0


def test_a_state_without_seconds_can_be_used(tmp_path: Path) -> None:
    np.savez(tmp_path / "000000012.npz", *map(np.asarray, jax.tree.leaves(state(12))))
    assert bits(Checkpoints(tmp_path).restore(LIKE)) == bits(state(12))


def test_remove(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    save(folder, 10, 20)
    checkpoints = Checkpoints(folder)
    checkpoints.remove()
    assert not folder.exists()
    assert checkpoints.restore(LIKE) is LIKE
    checkpoints.remove()  # nothing there is no error
    save(folder, 30)
    assert int(checkpoints.restore(LIKE).step) == 30


def test_full_disk_is_one_clear_error_and_costs_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    before = names(tmp_path)
    with room_for(100), pytest.raises(LpafError, match="cannot write") as raised:
        save(tmp_path, 20)
    assert "\n" not in str(raised.value)
    assert names(tmp_path) == before
    assert bits(Checkpoints(tmp_path).restore(LIKE)) == bits(state(10))


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LpafError, match="cannot write"):
        save(tmp_path / "file" / "stage", 10)
