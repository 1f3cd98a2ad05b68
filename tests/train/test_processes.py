"""Two processes on one stage: they end as one does, stop together, and go on together."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.worker import DEVICES, STEPS, job

PROCESSES = 2
SECONDS = 300.0  # after which a process is taken to hang


@contextmanager
def workers(folder: Path, slow: bool = False) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes, which do not outlive the block; what they said is in `folder`."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A proxy is not for what stays on this machine.
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    started = []
    try:
        for process in range(PROCESSES):
            words = [folder, process, PROCESSES, port, "slow" if slow else "fast"]
            with (folder / f"{process}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.train.worker", *map(str, words)],
                        cwd=Path(__file__).parents[2],
                        env=env | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.wait()


def said(folder: Path) -> str:
    return "\n".join(
        f"{log.name}:\n{log.read_text(errors='replace')}" for log in sorted(folder.glob("*.log"))
    )


def ends(started: list[subprocess.Popen[bytes]], folder: Path) -> list[int | None]:
    """The exit codes; when one process has failed the others, which wait for it, have None."""
    limit = time.monotonic() + SECONDS
    while True:
        codes = [worker.poll() for worker in started]
        if None not in codes or not {*codes} <= {None, 0, 143}:
            return codes
        if time.monotonic() > limit:
            pytest.fail(f"the processes hang\n{said(folder)}")
        time.sleep(0.05)


def results(folder: Path) -> list[Any]:
    return [pickle.loads((folder / f"{i}.pickle").read_bytes()) for i in range(PROCESSES)]


def run(folder: Path) -> list[Any]:
    with workers(folder) as started:
        assert ends(started, folder) == [0, 0], said(folder)
    return results(folder)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run(tmp_path_factory.mktemp("unbroken"))


@pytest.mark.slow
def test_two_processes_end_as_one_device_does(unbroken: list[Any], tmp_path: Path) -> None:
    one = job(tmp_path / "states", None)
    assert len(one["losses"]) == STEPS
    for found in unbroken:
        assert found["devices"] == (PROCESSES * DEVICES, DEVICES)
        np.testing.assert_allclose(found["losses"], one["losses"], rtol=1e-5)
        assert found["accuracies"] == one["accuracies"]
        for name, x in one["state"].items():
            if x.dtype == np.float32:
                np.testing.assert_allclose(found["state"][name], x, atol=1e-5, err_msg=name)
            else:  # masks and counts
                np.testing.assert_array_equal(found["state"][name], x, err_msg=name)
        for path, product in one["products"].items():
            np.testing.assert_allclose(found["products"][path], product, atol=1e-4, err_msg=path)
    masks = [x for name, x in one["state"].items() if ".masks" in name]
    assert len(masks) == len(one["products"]) == 2
    assert all(0.2 < x.mean() < 0.4 for x in masks)


@pytest.mark.slow
def test_no_process_holds_a_whole_large_array(unbroken: list[Any]) -> None:
    for found in unbroken:
        large = {name for name, x in found["state"].items() if x.size >= 256}
        assert found["cut"] == large
        assert any(".scores" in name for name in large)
        assert any(".masks" in name for name in large)


@pytest.mark.slow
def test_processes_stop_together_and_end_as_if_they_had_not(
    unbroken: list[Any], tmp_path: Path
) -> None:
    with workers(tmp_path, slow=True) as started:
        limit = time.monotonic() + SECONDS
        while (tmp_path / "0.log").read_text(errors="replace").count("step\n") < 2:
            assert started[0].poll() is None, said(tmp_path)
            assert time.monotonic() < limit, said(tmp_path)
            time.sleep(0.02)
        started[1].send_signal(signal.SIGTERM)
        assert ends(started, tmp_path) == [143, 143], said(tmp_path)
    stopped = [len(found["losses"]) for found in results(tmp_path)]
    assert 2 <= stopped[0] < STEPS
    assert stopped == [stopped[0]] * PROCESSES
    assert str(stopped[0]) in {path.name for path in (tmp_path / "states").iterdir()}

    for found, whole in zip(run(tmp_path), unbroken, strict=True):
        assert found["began at"] == stopped[0]
        assert found["losses"] == whole["losses"][stopped[0] :]
        assert found["state"].keys() == whole["state"].keys()
        for name, x in whole["state"].items():
            assert found["state"][name].tobytes() == x.tobytes(), name
