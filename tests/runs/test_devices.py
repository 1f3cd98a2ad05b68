"""The whole job on several devices, in bfloat16, in parts and with a teacher."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.core.errors import SettingError
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.stages.trainer import layout_of
from tests.tiny import Tiny

ROOT = Path(__file__).parents[2]


def on_four_devices(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "lpaf_jax.cli", *arguments]
    flags = "--xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_four_devices_end_where_one_does(tiny: Tiny, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    on_four_devices(tiny.arguments(run, fsdp=2))
    assert_same_stages(run, finished)


@pytest.mark.slow
def test_adapters_on_four_devices_end_where_those_on_one_do(tiny: Tiny, tmp_path: Path) -> None:
    """Between truncations, and beside matrices in four bits, whose parts are spread, too."""
    chosen: dict[str, Any] = {"recipe": "lora-svd", "lora": 3, "truncations": 2}
    chosen |= {"lora_base": "nf4", "tune_epochs": 1.0}
    one, four = tmp_path / "one", tmp_path / "four"
    compress(**tiny.chosen(one, **chosen))
    on_four_devices(tiny.arguments(four, fsdp=2, **chosen))
    for stage in ("stages/factorized", "model"):
        ours, theirs = (load_file(f / stage / "model.safetensors") for f in (four, one))
        assert ours.keys() == theirs.keys()
        places = [name.removesuffix(".down.weight") for name in ours if "down.weight" in name]
        for place in places:  # two factors may be turned against each other
            found, expected = (
                x[f"{place}.up.weight"] @ x[f"{place}.down.weight"] for x in (ours, theirs)
            )
            np.testing.assert_allclose(found, expected, atol=5e-3, err_msg=place)


@pytest.mark.slow
def test_heads_and_channels_go_on_four_devices_as_on_one(tiny: Tiny, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"recipe": "loraprune", "prune_lora": 3, "tune_epochs": 1.0}
    one, four = tmp_path / "one", tmp_path / "four"
    compress(**tiny.chosen(one, **chosen))
    on_four_devices(tiny.arguments(four, fsdp=2, **chosen))
    for stage in ("stages/factorized", "model"):
        ours, theirs = (load_file(f / stage / "model.safetensors") for f in (four, one))
        for name, x in theirs.items():
            np.testing.assert_allclose(ours[name], x, atol=5e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [False, True], ids=["whole", "stages taken over"])
def test_two_processes_end_where_one_does(
    tiny: Tiny, finished: Path, tmp_path: Path, reuse: bool
) -> None:
    run = tmp_path / "run"
    chosen: dict[str, Any] = {"distributed": True} | ({"reuse": finished} if reuse else {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # A proxy is not for what stays on this machine.
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    kept |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    started = []
    for process in range(2):
        with (tmp_path / f"{process}.log").open("wb") as log:
            command = [sys.executable, "-m", "lpaf_jax.cli", *tiny.arguments(run, **chosen)]
            environment = kept | {"JAX_PROCESS_ID": str(process)}
            started.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            )
    try:
        codes = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    said = [(tmp_path / f"{process}.log").read_text(errors="replace") for process in range(2)]
    assert codes == [0, 0], "\n".join(said)
    assert_same_stages(run, finished)


def assert_same_stages(run: Path, finished: Path) -> None:
    """The models of two runs agree to what rounding makes of them, and so do the figures."""
    for stage in ("dense", "pruned"):
        ours, theirs = (
            load_file(f / "stages" / stage / "model.safetensors") for f in (run, finished)
        )
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(array == 0, theirs[name] == 0, err_msg=name)
            # The learning rate is high, and Adam makes much of little where gradients are small.
            np.testing.assert_allclose(array, theirs[name], atol=5e-3, err_msg=name)
    ours, theirs = (json.loads((f / "metrics.json").read_text()) for f in (run, finished))
    for stage, result in theirs["stages"].items():
        assert abs(ours["stages"][stage]["correct"] - result["correct"]) <= 1


@pytest.mark.slow
def test_a_run_in_bfloat16_in_parts_with_a_teacher(
    tiny: Tiny, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    chosen = {"dtype": "bfloat16", "accumulate": 2, "distil": 20.0, "distil_hidden": 1.0}
    metrics = compress(**tiny.chosen(run, **chosen))
    assert metrics["stages"]["final"]["accuracy"] > 0.8
    rows = [json.loads(line) for line in (run / "logs" / "train.jsonl").read_text().splitlines()]
    others = (finished / "logs" / "train.jsonl").read_text().splitlines()
    plain = {(r["stage"], r["step"]): r for r in map(json.loads, others) if "loss" in r}
    # What the teacher adds is seen; what is computed in is not, beyond rounding.
    tuned = next(row for row in rows if row["stage"] == "tune")
    assert tuned["task_loss"] > 2 * plain["tune", tuned["step"]]["task_loss"]
    first = next(row for row in rows if row["stage"] == "finetune")
    assert first["loss"] == pytest.approx(plain["finetune", first["step"]]["loss"], rel=0.2)
    for stage in ("stages/dense", "model"):
        arrays = load_file(run / stage / "model.safetensors")
        assert {array.dtype.name for array in arrays.values()} == {"float32"}


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"batch": 32, "accumulate": 3}, "accumulate"),
        ({"fsdp": 0}, "fsdp"),
        ({"temperature": 0.0}, "temperature"),
        ({"distil": -1.0}, "distil"),
    ],
)
def test_choices_that_cannot_be(chosen: dict[str, float], named: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as raised:
        make_settings("minilm", task="rotten_tomatoes", out=tmp_path, **chosen)
    assert raised.value.names[0] == named


def test_devices_that_cannot_be_cut_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(**chosen: int) -> None:
        made = make_settings("minilm", task="rotten_tomatoes", out=tmp_path, **chosen)
        layout_of(made.training)

    settings()
    monkeypatch.setattr("jax.device_count", lambda: 1)
    with pytest.raises(
        SettingError, match="fsdp is 2, but there is only 1 device: leave it out"
    ) as one:
        settings(fsdp=2)
    assert one.value.names == ("fsdp",)
    monkeypatch.setattr("jax.device_count", lambda: 8)
    with pytest.raises(
        SettingError, match="fsdp is 3, which does not divide the number of devices, 8"
    ):
        settings(fsdp=3)
    with pytest.raises(SettingError, match=r"batch is 12: with 8 devices .* multiple of 8"):
        settings(batch=12)
    with pytest.raises(SettingError, match="multiple of 16"):
        settings(batch=24, accumulate=2)
