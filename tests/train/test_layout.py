"""Layouts: what is cut where, and training on eight devices is training on one."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.processes import on_host
from lpaf_jax.train import Layout, make_layout
from tests.train.spread import CASES, FSDP

ON_MESHES = [(case, mesh) for case, (_, meshes) in CASES.items() for mesh in meshes]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the program `spread` found on eight devices: a process has to be told at its start."""
    out = tmp_path_factory.mktemp("layouts") / "found.pickle"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-m", "tests.train.spread", out],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    found = pickle.loads(out.read_bytes())
    assert found["devices"] == 8
    return found


def test_state_is_cut_along_the_largest_axis_that_fsdp_divides() -> None:
    layout = Layout(AbstractMesh((2, 4), ("data", "fsdp")), small=64)  # type: ignore[arg-type]
    whole, first, second = PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec(None, "fsdp")
    expected = {
        (8, 16): second,
        (16, 8): first,
        (8, 8): first,  # of equal axes the first
        (42, 8): second,  # 42 is no multiple of 4
        (9, 11): whole,
        (7, 9): whole,
        (64,): first,
        (60,): whole,  # small
        (): whole,
    }
    given = {shape: jax.ShapeDtypeStruct(shape, np.float32) for shape in expected}
    assert {shape: s.spec for shape, s in layout.of(given).items()} == expected
    data_alone = Layout(AbstractMesh((8, 1), ("data", "fsdp")), small=64)  # type: ignore[arg-type]
    assert {s.spec for s in data_alone.of(given).values()} == {whole}


@pytest.mark.parametrize("fsdp", [2, 0, -1])
def test_fsdp_must_divide_the_devices(fsdp: int) -> None:
    with pytest.raises(LpafError, match=f"fsdp is {fsdp}.*a divisor of 1$"):
        make_layout(fsdp, devices=jax.devices()[:1])


def test_on_one_device_a_layout_changes_no_value() -> None:
    layout = make_layout()
    tree = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "m": np.array([True, False])}
    back = on_host(layout.place(tree))
    assert {k: (x.dtype, x.tolist()) for k, x in back.items()} == {
        k: (x.dtype, x.tolist()) for k, x in tree.items()
    }


def test_placed_arrays_own_their_memory() -> None:
    # A step donates its state, and must not write over what the state was made of.
    given = jax.numpy.arange(4096.0)
    placed = make_layout().place(given)
    jax.jit(lambda x: x + 1, donate_argnums=0)(placed)
    assert given.sum() == 4095 * 2048


@pytest.mark.slow
@pytest.mark.parametrize(("case", "mesh"), ON_MESHES)
def test_training_is_that_of_one_device(found: Any, case: str, mesh: str) -> None:
    one, many = found[case]["one"], found[case][mesh]
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=3e-6)
    assert len({*one["losses"]}) == len(one["losses"])
    assert many["state"].keys() == one["state"].keys()
    for name, x in one["state"].items():
        y = many["state"][name]
        assert y.dtype == x.dtype
        if x.dtype == np.float32:
            np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5, err_msg=name)
        else:  # masks and counts
            np.testing.assert_array_equal(y, x, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if "pruning" in case])
def test_masks_had_something_to_disagree_on(found: Any, case: str) -> None:
    masks = [x for k, x in found[case]["one"]["state"].items() if ".masks" in k]
    assert sum(x.sum() for x in masks) == pytest.approx(0.3 * sum(x.size for x in masks), abs=1)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "mesh"), ON_MESHES)
def test_every_large_array_of_the_state_is_cut(found: Any, case: str, mesh: str) -> None:
    parts = FSDP[mesh]
    kinds = {".params[", ".mu[", ".nu["}
    kinds |= {".dense[", ".scores[", ".masks["} if "pruning" in case else set()
    cut = set()
    for name, (shape, shards, _) in found[case][mesh]["after"].items():
        assert len(shards) == 8
        assert len(set(shards)) == 1
        share = parts if np.prod(shape) >= 256 else 1
        assert np.prod(shards[0]) * share == np.prod(shape), name
        if share == 8 or mesh != "1 x 8":
            cut |= {kind for kind in kinds if kind in name}
    assert cut == kinds


@pytest.mark.slow
@pytest.mark.parametrize(("case", "mesh"), ON_MESHES)
def test_a_step_is_compiled_once_and_its_state_stays_where_it_was(
    found: Any, case: str, mesh: str
) -> None:
    many = found[case][mesh]
    assert many["late"] == []
    assert many["after"] == many["before"]


@pytest.mark.slow
@pytest.mark.parametrize("place", [*FSDP, "one device"])
def test_checkpoint_of_one_layout_is_restored_under_another(found: Any, place: str) -> None:
    saved, _ = found["restored"]["saved"]
    restored, *where = found["restored"][place]
    assert restored.keys() == saved.keys()
    for name, x in saved.items():
        assert restored[name].dtype == x.dtype
        assert restored[name].tobytes() == x.tobytes(), name
    if where:
        assert where[0] == where[1]


@pytest.mark.slow
def test_batch_that_devices_do_not_divide(found: Any) -> None:
    assert found["indivisible"] == (
        "a batch of 12 cannot be spread over 8 devices: make it a multiple of their number"
    )
