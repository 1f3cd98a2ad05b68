"""Checkpoints: bit-equal, never half-written, and a damaged one does not end a run."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.train import Checkpoints, Stopwatch, TrainState
from lpaf_jax.train import checkpoints as module


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


def save(folder: Path, *steps: int, **more: Any) -> None:
    """Each by a process of its own, as it were."""
    for step in steps:
        with closing(Checkpoints(folder, **more)) as checkpoints:
            checkpoints.save_if_due(state(step), now=True)


def restore(folder: Path, like: TrainState = LIKE, best: bool = False, **more: Any) -> TrainState:
    return Checkpoints(folder, **more).restore(like, best=best)


def steps_in(folder: Path) -> list[int]:
    return sorted(int(place.name) for place in folder.iterdir())


def flip_a_bit(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def change(to: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(to(file.read_bytes())) and None


DAMAGE = {
    "cut": change(lambda data: data[: len(data) // 2]),
    "empty": change(lambda data: b""),
    "something else": change(lambda data: b"not a checkpoint " * 20),
    "one bit": change(flip_a_bit),
    "gone": Path.unlink,
}
# What of a checkpoint is read again, as globs of files.
READ = {
    "what is said of it": "said/metadata",
    "arrays": "state/ocdbt.process_0/d/*",
    "index of arrays": "state/manifest.ocdbt",
    "names of arrays": "state/_METADATA",
    "digests": "state/sha256.json",
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    save(folder, 10, 20)
    return folder


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    save(tmp_path / "stage", 12)
    found = restore(tmp_path / "stage")
    assert jax.tree.structure(found) == jax.tree.structure(LIKE)
    assert bits(found) == bits(state(12))


def test_restored_state_may_be_donated(tmp_path: Path) -> None:
    save(tmp_path, 12)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x, s), donate_argnums=0)
    assert bits(step(restore(tmp_path))) == bits(state(12))
    assert bits(restore(tmp_path)) == bits(state(12))


def test_what_is_saved_is_the_state_at_the_time_of_saving(tmp_path: Path) -> None:
    # Steps that are given the state, and its memory, run while it is being written.
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    rng = np.random.default_rng(0)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        for number in range(1, 4):
            w = rng.normal(size=(8, 300, 300)).astype(np.float32)
            live = TrainState(
                jnp.int32(number), {str(i): jnp.array(x) for i, x in enumerate(w)}, ()
            )
            like = jax.tree.map(jnp.zeros_like, live)
            checkpoints.save_if_due(live, now=True)
            for _ in range(5):
                live = step(live)
            jax.block_until_ready(live)
            found = checkpoints.restore(like)
            assert int(found.step) == number
            assert all(np.array_equal(found.params[str(i)], x) for i, x in enumerate(w))


def test_nothing_there(tmp_path: Path) -> None:
    assert restore(tmp_path / "none") is LIKE
    assert not (tmp_path / "none").exists()
    assert restore(tmp_path) is LIKE


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 8, 9, 10, 11)
    assert steps_in(tmp_path) == [10, 11]
    assert int(restore(tmp_path).step) == 11
    shutil.rmtree(tmp_path / "11")
    assert int(restore(tmp_path).step) == 10


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step, value in [(1, 0.5), (2, 0.9), (3, None), (4, 0.9), (5, 0.7), (6, None), (7, 0.2)]:
        if step == 6:  # another process goes on
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path)
        checkpoints.save_if_due(state(step), now=True, value=value)
    checkpoints.close()
    assert steps_in(tmp_path) == [4, 6, 7]  # of equals the later
    assert bits(restore(tmp_path)) == bits(state(7))
    assert bits(restore(tmp_path, best=True)) == bits(state(4))
    shutil.rmtree(tmp_path / "4" / "state")
    assert int(restore(tmp_path, best=True).step) == 7
    # Worse than nothing is a value, too, and one that was lost counts no more.
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save_if_due(state(5), now=True, value=-3.0)
    assert int(restore(tmp_path, best=True).step) == 5


def test_without_values_the_best_is_the_newest(two: Path) -> None:
    assert int(restore(two, best=True).step) == 20


@pytest.mark.parametrize("part", READ)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_newest_gives_way_to_the_one_before(
    kind: str, part: str, two: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(two, tmp_path / "stage")
    DAMAGE[kind](max((folder / "20").glob(READ[part]), key=lambda file: file.stat().st_size))
    with caplog.at_level(logging.WARNING):
        found = restore(folder)
    assert bits(found) == bits(state(10))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"checkpoint {folder / '20'} cannot be used (")
    assert "\n" not in line


def test_nothing_that_is_said_of_a_state_is_taken_when_it_has_changed(
    two: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(two, tmp_path / "stage")
    said = folder / "20" / "said" / "metadata"
    text = said.read_text()
    assert '"seconds": 0.' in text
    said.write_text(text.replace('"seconds": 0.', '"seconds": 8.'))
    assert int(restore(folder).step) == 10


@pytest.mark.parametrize("kind", ["something else", "gone"])
def test_no_file_whose_damage_ends_a_run_or_makes_another_state(
    kind: str, two: Path, tmp_path: Path
) -> None:
    names = [file.relative_to(two) for file in (two / "20").rglob("*") if file.is_file()]
    assert len(names) > 10
    for name in names:
        folder = shutil.copytree(two, tmp_path / "stage")
        DAMAGE[kind](folder / name)
        found = restore(folder)
        assert int(found.step) in (10, 20)
        assert bits(found) == bits(state(int(found.step)))
        shutil.rmtree(folder)


def test_what_a_killed_process_leaves_is_not_taken_for_a_checkpoint(
    two: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(two, tmp_path / "stage")
    half = shutil.copytree(folder / "20", folder / "30.orbax-checkpoint-tmp")
    (half / "said" / "metadata").unlink()
    (folder / "40").mkdir()  # of which all but the folder was deleted
    (folder / "50").write_text("a file")
    (folder / "notes").mkdir()
    assert int(restore(folder).step) == 20
    save(folder, 60)
    assert int(restore(folder).step) == 60
    assert not half.exists()


def test_saves_after_a_damaged_one_count(two: Path, tmp_path: Path) -> None:
    # The run goes on from before the damaged state and must not lose what it then does.
    folder = shutil.copytree(two, tmp_path / "stage")
    (folder / "20" / "state" / "manifest.ocdbt").unlink()
    for step in (12, 15, 20):
        save(folder, step)
        assert int(restore(folder).step) == step


def test_all_damaged(two: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shutil.copytree(two, tmp_path / "stage")
    for place in folder.iterdir():
        (place / "said" / "metadata").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert restore(folder) is LIKE
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "like",
    [
        state(0, columns=4),
        LIKE._replace(opt_state=None),
        LIKE._replace(params={"w": LIKE.params["w"], "c": LIKE.params["b"]}),
        LIKE._replace(params={**LIKE.params, "b": jnp.int32(0)}),
    ],
    ids=["shape", "number", "name", "dtype"],
)
def test_state_of_something_else_is_not_taken(
    like: TrainState, two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert restore(two, like) is like
    assert all("another model" in record.getMessage() for record in caplog.records)


def test_state_that_stands_for_something_else_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = {"seed": 3, "batch": 8}, {"seed": 4, "batch": 8}
    with closing(Checkpoints(tmp_path, stands_for=theirs)) as checkpoints:
        checkpoints.save_if_due(state(10), now=True, value=0.9)
    assert restore(tmp_path, stands_for=ours) is LIKE
    assert "'seed': 4" in caplog.text
    assert int(restore(tmp_path, stands_for=theirs).step) == 10
    # Nor does its value stand in the way of ours.
    with closing(Checkpoints(tmp_path, stands_for=ours)) as checkpoints:
        for step, value in [(11, 0.5), (12, None), (13, None)]:
            checkpoints.save_if_due(state(step), now=True, value=value)
    assert steps_in(tmp_path) == [11, 12, 13]


def test_a_state_that_is_on_disk_is_not_written_again(tmp_path: Path) -> None:
    # Deleting it first would leave nothing to a run that is killed at this moment.
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save_if_due(state(10), now=True, value=0.5)
        checkpoints.close()
        before = (tmp_path / "10").stat().st_ino
        checkpoints.save_if_due(state(10), now=True)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save_if_due(checkpoints.restore(LIKE), now=True)
    assert (tmp_path / "10").stat().st_ino == before


def test_saves_go_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 100.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: clock["now"])
    saved = []
    with closing(Checkpoints(tmp_path, every=60)) as checkpoints:
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
    for name, clock["now"] in (("a", 130.0), ("b", 150.0)):
        with closing(Checkpoints(tmp_path / name, stopwatch=first)) as checkpoints:
            checkpoints.save_if_due(state(10), now=True)
    clock["now"] = 1000.0  # what is not saved is done again, and not counted twice
    for name, taken in (("a", 30.0), ("b", 50.0), ("none", 0.0)):
        again = Stopwatch()
        clock["now"] += 4.0
        for _ in range(2):
            restore(tmp_path / name, stopwatch=again)
        assert again.seconds() == taken + 4.0


def test_remove(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    save(folder, 10, 20)
    with closing(Checkpoints(folder)) as checkpoints:
        assert int(checkpoints.restore(LIKE).step) == 20
        checkpoints.remove()
        assert not folder.exists()
        assert checkpoints.restore(LIKE) is LIKE
        checkpoints.remove()  # nothing there is no error
        checkpoints.save_if_due(state(20), now=True)
        assert int(checkpoints.restore(LIKE).step) == 20


# In a process of its own: what orbax leaves half done complains at any time later.
FILLS_UP = """
import sys
from contextlib import closing
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lpaf_jax.core.errors import LpafError
from lpaf_jax.train import Checkpoints, TrainState
from tests.disk import room_for

noise = np.random.default_rng(0).normal(size=2000).astype(np.float32)

def state(step):
    return TrainState(jnp.int32(step), {"w": jnp.asarray(noise * step)}, ())

def save(step):
    with closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save_if_due(state(step), now=True)

def holds(step):
    with closing(Checkpoints(folder)) as checkpoints:
        found = checkpoints.restore(state(0))
    return int(found.step) == step and np.array_equal(found.params["w"], noise * step)

# The larger the room, the later it is used up: the last is all but enough.
for size in (0, 60, 300, 5000):
    folder = Path(sys.argv[1]) / str(size)
    save(10)
    try:
        with room_for(size):
            save(20)
    except LpafError as error:
        print(error)
    assert holds(10), size
    save(20)
    assert holds(20), size
    assert sorted(place.name for place in folder.iterdir()) == ["10", "20"], size
"""


def test_full_disk_is_one_clear_error_and_costs_no_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLS_UP, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for size, line in zip((0, 60, 300, 5000), lines, strict=True):
        assert line.startswith(f"cannot write the checkpoints in {tmp_path / str(size)}: ")
        assert line.endswith("File too large")


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LpafError, match="cannot write the checkpoints in .*: .*Not a directory"):
        save(tmp_path / "file" / "stage", 10)
